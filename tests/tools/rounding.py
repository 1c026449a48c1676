"""How far fp32 may be from fp64: a bound that is derived, and asks no processor.

fp32 rounds after every operation, and in which order it adds is the processor's choice: two right programs differ, and
so does one program on two machines. fp64 rounds as well, 5e8 times finer, so an fp64 result is the same on all of them
to some 1e-12. The distance that rounding may put between the two comes from the question put backwards (Higham 2002,
section 1.5): what fp32 computes is what exact arithmetic computes from slightly other numbers. So weights and inputs
are moved by units in their last fp32 place (ulps), with random signs, the computation is done in fp64, and the largest
change of a result over some seeds, times a safety factor, is its bound. A training rounds anew in each of its steps, so
there the weights are moved anew in each step as well.

The factor is 16 to one ulp. A value here passes through some hundred operations, each of which rounds by half an ulp;
with random signs that is sqrt(100) / 2 = 5 ulps, and 3 times that leaves room for sums that are added in an unlucky
order. Where all is smooth it does not matter whether the factor is applied to what is moved or to the change that
comes of it. But at a kink (leaky ReLU, hinge, |x|) a gradient jumps, and only a value that is moved as far as fp32
may move it shows that one is near; how large the jump is does not depend on how far it was moved. So both are done
(`MOVES`): some seeds move by 4 ulps and count their changes 4 times; the others move by all 16 and count theirs
twice, because fp32 may meet two kinks where a seed has met one. Where training has amplified rounding until the
change no longer depends on how much was moved, fp32 is one more draw beside the few seeds, and may well be the
largest.

No bound is less than `ULPS` ulps of the result: in a sum over a whole clip what the inputs were moved by cancels, but
fp32 still rounds the sum, and its partial sums, to numbers of the sum's own size.

Training in fp32 also keeps its weights in fp32. What that rounds away is no accident: a step of Adam adds the same lr
to many weights of one size, and all of these sums round the same way. It is the same on every processor, too, so an
fp64 computation that fp32 is held to does the same with `store_in_fp32` after each update.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

MOVES = ((4, 4), (16, 2))  # ulps to move by, and how often the change counts
ULPS = 4
SEEDS = range(3)
# The adaptive adversarial weight is a ratio of gradient norms through leaky ReLUs. Some of their inputs lie within
# rounding of zero, and each that changes its side moves the ratio by about 1e-3 at once; whether the few seeds meet one
# is an accident. So nothing holds that weight in fp32 to less than this share of it, nor the discriminator's gradient.
LEAST_SHARE = 5e-3
DISCRIMINATOR_TERMS = ("disc_loss", "lecam_loss", "logits_real", "logits_fake", "adversarial_loss")

Results = dict[str, Tensor]


class Moved:
    """Turns numbers into float64 and moves them by `ulps` ulps of fp32 with random signs; without a seed by nothing."""

    def __init__(self, seed: int | None = None, ulps: int = ULPS) -> None:
        self.ulps = ulps
        self._source = None if seed is None else torch.Generator().manual_seed(seed)

    def __call__(self, x: Tensor) -> Tensor:
        """A float64 copy of `x`, each number moved; zeros stay."""
        x = x.detach().double()
        if self._source is None:
            return x.clone()
        signs = torch.randint(0, 2, x.shape, generator=self._source) * 2 - 1
        return x + self.ulps * signs * ulp(x)

    def weights(self, module: nn.Module) -> nn.Module:
        """Turn a module into float64, in place, and move its weights; returns it."""
        module.double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(self(parameter))
        return module

    @contextlib.contextmanager
    def passing(self, *modules: nn.Module) -> Iterator[None]:
        """Weights of float64 modules are moved inside, anew each time, and are what they were afterwards.

        Every step of a training rounds anew, so each step's gradients are those of slightly other weights.
        """
        kept = [(parameter, parameter.detach().clone()) for module in modules for parameter in module.parameters()]
        with torch.no_grad():
            for parameter, _ in kept if self._source is not None else ():
                parameter.copy_(self(parameter))
        yield
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


def ulp(x: Tensor) -> Tensor:
    """What one unit in the last fp32 place of each number is worth (float64); 0 for 0."""
    exponent = torch.frexp(
        x
    ).exponent  # |x| = mantissa * 2**exponent, mantissa in [0.5, 1), of which fp32 keeps 24 bits
    return torch.where(x == 0, 0.0, torch.ldexp(torch.ones_like(x), exponent - 24))


@torch.no_grad()
def store_in_fp32(parameters: Iterable[Tensor]) -> None:
    """Round float64 weights to fp32 numbers, in place."""
    for parameter in parameters:
        parameter.copy_(parameter.float())


def apart(name: str, a: Tensor, b: Tensor) -> float:
    """How far a result is from another: its largest element that differs.

    Of a trained discriminator's weights, the root mean square: a kink turns the small gradient of single elements
    around, and Adam makes a whole step of either direction.
    """
    difference = a.detach().double() - b
    if name.startswith("final discriminator."):
        return float(difference.square().mean().sqrt())
    return float(difference.abs().max())


def with_bounds(compute: Callable[[Moved], Results], seeds: Iterable[int] = SEEDS) -> tuple[Results, dict[str, float]]:
    """fp64 results, and how far each of their fp32 counterparts may be from them.

    Args:
        compute: does the work in fp64, on weights and inputs that have all gone through what it is given.
    Returns:
        Results by name, and for each the largest change of any of its elements, as often as `MOVES` counts it (where
        they are more: `ULPS` ulps of the largest element).
    """
    exact = compute(Moved())
    bounds = {name: ULPS * float(ulp(value.detach().abs().max())) for name, value in exact.items()}
    for (ulps, factor), seed in itertools.product(MOVES, seeds):
        moved = compute(Moved(seed, ulps))
        assert moved.keys() == exact.keys()
        for name, value in exact.items():
            bounds[name] = max(bounds[name], factor * apart(name, moved[name], value))
    return exact, bounds


def allow_for_kinks(exact: Results, bounds: dict[str, float], weight: float) -> None:
    """Raise the bounds of a training's terms, such as "step 3 total_loss", to what `LEAST_SHARE` makes of each.

    What the discriminator says has moved along its gradient: so it is held to no less than that share of the largest
    change that one step has made of it so far.

    Args:
        exact, bounds: as `with_bounds` gives them, in the order of the steps; bounds are changed.
        weight: of the adversarial gradient at the last layer, as a share of the other one's.
    """
    before: Results = {}
    changes: Results = {}
    for name, value in exact.items():
        step, _, term = name.rpartition(" ")
        parts = {}
        if term in DISCRIMINATOR_TERMS:
            if term in before:
                changes[term] = torch.maximum((value - before[term]).abs(), changes.get(term, torch.zeros_like(value)))
                parts = {term: changes[term]}
            before[term] = value
        if term == "adversarial_weight":
            parts = {"adversarial_weight": value, "total_loss": value * exact[f"{step} adversarial_loss"]}
            parts["grad_norm_generator"] = weight * exact[f"{step} grad_norm_generator"]
        elif term == "grad_norm_discriminator":
            parts = {term: value}
        for affected, part in parts.items():
            affected = f"{step} {affected}"
            bounds[affected] = max(bounds[affected], LEAST_SHARE * float(part.abs()))


def assert_within(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], bounds: Mapping[str, float]) -> None:
    """Every result is there, and no element is further from the fp64 one than its bound; prints the nearest to it."""
    assert found.keys() == exact.keys()
    errors = {}
    for name, value in exact.items():
        assert found[name].shape == value.shape, name
        errors[name] = apart(name, found[name], value)
    shares = {
        name: error / bounds[name] if bounds[name] else error * torch.inf for name, error in errors.items() if error
    }
    for name in sorted(shares, key=lambda key: -shares[key])[:3]:
        print(f"{name}: {shares[name]:.2f} of its bound {bounds[name]:.2g}")
    wrong = [f"{name}: off by {errors[name]:.3g}" for name in exact if not errors[name] <= bounds[name]]
    assert not wrong, "rounding explains less: " + "; ".join(wrong)
