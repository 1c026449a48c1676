"""Training steps from states that are built by hand so that one cause of instability shows, with its guard and without.

python -m tests.trainer.instability.constructed DIRECTORY

The steps are the real ones, on one rank under DeepSpeed. What they found goes to DIRECTORY/results.pt, and
test_instability.py judges it. A guard is removed by replacing it for as long as the steps last.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trainer import half
from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks
from trainer.engine.engine import Engine
from trainer.engine.engine_settings import EngineSettings
from trainer.perceptual import load_perceptual, untrained_perceptual
from trainer.telemetry.nonfinite import SkippedSteps
from trainer.telemetry.running_means import RunningMeans

Prepare = Callable[[nn.Module], None]
AT_ONCE = ["gan.start=0", "gan.warmup=0", "gan.ramp=0"]
AT_ONCE += ["optim.generator.warmup=0", "optim.discriminator.warmup=0", "gan.lecam_weight=0"]
SIDE = 32  # pictures that all layers of ST-LPIPS can look at
AT_ONCE += [f"model.image_size={SIDE}", "model.patch_size=8", f"data.image_size={SIDE}"]
WAVES = global_batches(steps=3, side=SIDE)
GREY = torch.zeros(4, 3, 8, SIDE, SIDE)
LOGVAR, DECAY, LR = -3.0, 100.0, 1e-3


def steps_from(
    directory: Path,
    ranks: Ranks,
    words: list[str],
    prepare: dict[str, Prepare],
    *,
    batches: list[Tensor] | None = None,
    without: AbstractContextManager[Any] | None = None,
    perceptual: Prepare | None = None,
) -> dict[str, Any]:
    """A few steps from a state.

    Args:
        words: settings besides those with which the discriminator joins at once.
        prepare: network -> what makes its state, before its engine is built.
        batches: the global batches; None = three of moving waves.
        without: inside of it a guard is missing.
        perceptual: what makes the state of a perceptual network with random weights; None = the usual network.
    Returns:
        `rows`, the terms of each step; `named`, the rows of nonfinite.jsonl; `logvar`, its value at the end.
    """

    def make_engine(name: str, module: nn.Module, settings: EngineSettings) -> Engine:
        with torch.no_grad():
            prepare.get(name, lambda module: None)(module)
        return Engine(name, module, settings)

    def make_perceptual(*arguments: Any) -> Any:
        if perceptual is None:
            return load_perceptual(*arguments)
        network = untrained_perceptual(*arguments)
        assert network is not None
        with torch.no_grad():
            perceptual(network)
        return network

    config = tiny_config(str(directory), *AT_ONCE, *words)
    with without or nullcontext():
        method = Autoencoder(config, ranks, make_engine=make_engine, make_perceptual=make_perceptual)
        (directory / "nonfinite.jsonl").unlink(missing_ok=True)
        known, means = SkippedSteps(directory / "nonfinite.jsonl", ranks), RunningMeans(ranks.device)
        rows = []
        for step, video in enumerate(batches or WAVES):
            batch = as_batch(video)
            terms = method.step(batch, step)
            known.add(step + 1, batch.keys, terms["skipped"], means.add(terms), method.gradients())
            rows.append({name: float(value) for name, value in terms.items()})
        named = known.explain()
    return {"rows": rows, "named": named, "logvar": float(method.generator.full_state()["logvar"])}


def low_scale(module: nn.Module, value: float) -> None:
    """The learnt scale lies at `value`."""
    module.get_parameter("logvar").fill_(value)


def rebuilds_grey(module: nn.Module, value: float = 0.0) -> None:
    """Every clip is rebuilt as grey, so that a grey clip has no error at all; the learnt scale lies at `value`."""
    for name in ("weight", "bias"):
        module.get_parameter(f"vidtwin.pixels.linear.{name}").zero_()
    low_scale(module, value)


def wide_posteriors(module: nn.Module) -> None:
    """Every posterior's log-variance is some 200."""
    for name, bias in module.named_parameters():
        if name.endswith("moments.bias"):
            bias[len(bias) // 2 :] = 200.0


def faint(module: nn.Module) -> None:
    """The discriminator hardly says anything, so that its gradient at the decoder's last layer is nearly 0."""
    for weight in module.get_submodule("discriminator.last").parameters():
        weight.mul_(1e-12)


def constant(module: nn.Module) -> None:
    """All activations of the discriminator are constant, so that a batch of them has no variance."""
    for weight in module.get_submodule("discriminator.first").parameters():
        weight.zero_()


def without_offset(module: nn.Module) -> None:
    constant(module)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d):
            part.eps = 1e-60  # 0 in fp32; torch refuses 0 itself


def blind(module: nn.Module) -> None:
    """No feature of the perceptual network answers to any picture: vectors of features are zero everywhere."""
    for key in module.stages[0]:  # type: ignore[union-attr, operator]
        module.get_parameter(f"features.{key}.bias").fill_(-1e3)


def root_of_sum(features: Tensor) -> Tensor:
    """Vectors scaled to length one as the formula is written, whose gradient at a zero vector is 0 times infinity."""
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def multiplying_relu(x: Tensor) -> Tensor:
    """A ReLU whose gradient is multiplied by 0 or 1, so that NaN stays NaN; torch's selects, so that NaN becomes 0."""
    return x * (x > 0).to(x.dtype)


MULTIPLYING = SimpleNamespace(relu=multiplying_relu, linear=F.linear, max_pool2d=F.max_pool2d)


@contextmanager
def patched(*places: tuple[str, Any]) -> Iterator[None]:
    """Inside, each name stands for something else."""
    with ExitStack() as stack:
        for place, other in places:
            stack.enter_context(mock.patch(place, other))
        yield


def scenarios(directory: Path, ranks: Ranks) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything there is to run, by name; the same with `without` in front is the state without its guard."""
    run = partial(steps_from, directory, ranks)
    no_floor = partial(patched, ("trainer.objective.LOGVAR_FLOOR", -math.inf))
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for precision, stage in (("fp32", 0), ("bf16", 1)):
        words = [f"precision={precision}", f"zero.stage={stage}"]
        low = {"generator": partial(low_scale, value=-90.0)}
        wide = {"generator": wide_posteriors}
        found[f"scale {precision}"] = partial(run, words, low)
        found[f"without scale {precision}"] = lambda w=words, s=low: run(w, s, without=no_floor())
        found[f"posterior {precision}"] = partial(run, words, wide)
        limit = partial(patched, ("model.posterior.LOGVAR_MAX", math.inf))
        found[f"without posterior {precision}"] = lambda w=words, s=wide, m=limit: run(w, s, without=m())
    fast = ["gan.weight=0", "loss.kl_weight=0", "optim.generator.lr=0.1", "optim.generator.weight_decay=0"]
    grey: dict[str, Any] = {"batches": [GREY] * 20}
    perfect = {"generator": partial(rebuilds_grey, value=-9.95)}
    found["perfect"] = partial(run, fast, perfect, **grey)
    found["without perfect"] = lambda: run(fast, perfect, without=no_floor(), **grey)

    half_words, wide = ["precision=fp16", "zero.stage=0", "gan.weight=0"], {"generator": wide_posteriors}
    found["half"] = half.allowed()(partial(run, half_words, wide))
    short = partial(patched, ("model.posterior.at_least_fp32", lambda x: x))
    found["without half"] = half.allowed()(lambda: run(half_words, wide, without=short()))

    found["ratio"] = partial(run, [], {"discriminator": faint})
    found["without ratio"] = lambda: run(
        [], {"discriminator": faint}, without=patched(("trainer.gan.RATIO_LIMIT", math.inf))
    )
    found["unheard"] = partial(run, ["gan.warmup=100"], {"discriminator": faint})

    single = ["micro_batch=1", "discriminator.norm=batch"]
    found["statistics"] = partial(run, single, {"discriminator": constant}, batches=[GREY] * 3)
    found["without statistics"] = partial(run, single, {"discriminator": without_offset}, batches=[GREY] * 3)

    for network in ("lpips", "st_lpips"):
        words = [f"loss.perceptual={network}", "loss.lpips_weights=unused", "gan.weight=0"]
        same = {"generator": rebuilds_grey}
        identical = partial(run, words, same, batches=[GREY] * 3)
        found[f"{network} identical"] = partial(identical, perceptual=lambda module: None)
        found[f"{network} blind"] = partial(run, words, {}, perceptual=blind)
        root, relu = ("model.lpips._unit", root_of_sum), ("model.lpips.F", MULTIPLYING)
        for missing in ((root,), (relu,), (root, relu)):
            name = f"without {' and '.join(place.rpartition('.')[2] for place, _ in missing)} {network}"
            found[name] = lambda w=words, m=missing: run(w, {}, perceptual=blind, without=patched(*m))

    for decay in ("all", "matrices"):
        words = [f"optim.decay={decay}", f"optim.generator.weight_decay={DECAY}", f"optim.generator.lr={LR}"]
        state = {"generator": partial(low_scale, value=LOGVAR)}
        found[f"decay {decay}"] = partial(run, words, state, batches=WAVES[:1])
    return found


def main() -> None:
    directory = Path(sys.argv[1])
    ranks = distributed.start(2)
    wanted = sys.argv[2:]
    chosen = {
        name: run for name, run in scenarios(directory, ranks).items() if not wanted or name.startswith(tuple(wanted))
    }
    torch.save({name: run() for name, run in chosen.items()}, directory / "results.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
