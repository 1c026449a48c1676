"""A network in a DeepSpeed engine, which steps it, saves it, and gathers its shards.

Measured with DeepSpeed 0.19.8 and torch 2.13:
* A parameter without dimensions breaks ZeRO.
* DeepSpeed skips a step with a non-finite gradient at ZeRO 1-3 and in 16-bit, but not at ZeRO 0 in fp32. There
  `optimizer.Guard` skips it, on the device, and computes the gradient norm as well.
* In fp16 at ZeRO 0, DeepSpeed divides the gradients by a loss scale, but does not multiply the loss by it.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.learning import Precision
from trainer.engine import deepspeed_private
from trainer.engine.engine_settings import EngineSettings, engine_config
from trainer.engine.forward_clock import ForwardClock
from trainer.engine.gradient_watch import Gradients, GradientWatch
from trainer.engine.optimizer import Guard, build_optimizer, weight_groups
from trainer.engine.saved_files import no_code

LOWEST_SCALE = 2.0**-16
# DeepSpeed copies these into every checkpoint at ZeRO 1 to 3 and has no setting against it. They fail here, because a
# checkpoint here has no file that names the newest one; launch/export.py does their work.
DEEPSPEED_SCRIPTS = ("zero_to_fp32.py", "zero_to_torch.py")


class Engine:
    """A network in a DeepSpeed engine, with what a training step needs of it.

    Args:
        name: its folder in a checkpoint.
        module: every parameter has at least one dimension.
        settings: how it is trained.
    """

    def __init__(self, name: str, module: nn.Module, settings: EngineSettings) -> None:
        assert all(parameter.dim() > 0 for parameter in module.parameters())
        self.name, self.stage = name, settings.stage
        self.rounded = settings.precision is not Precision.fp32  # the working weights have 16 bits
        self.plain = self.stage == 0 and not self.rounded
        self.guard = Guard(settings.optim.clip) if self.plain else None
        # A weight that does not learn has no master, and 16-bit engines round it, so its exact values are kept here.
        self.frozen = {
            name: parameter.detach().cpu().clone()
            for name, parameter in module.named_parameters()
            if not parameter.requires_grad
        }
        learning = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        # A cast gives a parameter new memory, so these tensors stay exact, and cost no copy.
        exact = {name: weight.detach() for name, weight in learning.items()}
        groups = weight_groups({name: weight.shape for name, weight in learning.items()}, settings.optim.decay)
        self.groups, self._order = len(groups), [name for names, _ in groups for name in names]
        weights = [([learning[name] for name in names], decays) for names, decays in groups]
        optimizer = build_optimizer(weights, settings.optimizer, self.guard)
        self._settings = [{k: v for k, v in of.items() if k not in ("lr", "params")} for of in optimizer.param_groups]
        self.engine = self._initialized(module, optimizer, settings)
        self.module: nn.Module = self.engine.module
        self.forward_clock = ForwardClock(on_gpu=self.engine.device.type == "cuda")
        self.watch = GradientWatch(self.module)
        self.always_watched = settings.optim.max_skipped == 1  # the first skipped step ends the run then
        self.watch.switch(self.always_watched and not self.plain)
        self._names = {id(weight): name for name, weight in self.module.named_parameters()}
        self._correct(exact, settings.precision)
        self.scale_used = self.loss_scale

    def _initialized(self, module: nn.Module, optimizer: torch.optim.Optimizer, settings: EngineSettings) -> Any:
        """DeepSpeed's engine of a module and of the optimizer of its weights that learn."""
        import deepspeed
        from deepspeed.utils import set_z3_leaf_modules

        if self.stage == 3 and settings.gathered_whole:
            set_z3_leaf_modules(module, list(settings.gathered_whole))
        clip = 0.0 if self.plain else settings.optim.clip
        elements = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=engine_config(settings, clip, elements),
            dist_init_required=False,
        )
        return engine

    def _correct(self, exact: Mapping[str, Tensor], precision: Precision) -> None:
        """Undo what DeepSpeed does to masters, moments and loss scale when it begins.

        Args:
            exact: name -> the weight that learns, as it was before DeepSpeed rounded it.
        """
        if self.rounded:
            # DeepSpeed has made the masters from weights that it had rounded to 16 bits.
            deepspeed_private.begin_setting_masters(self.engine, self.stage)
            self.fill(self.masters(), lambda name, start, count: exact[name].reshape(-1)[start : start + count])
            deepspeed_private.update_working_weights(self.engine, self.stage)
        if self.stage == 0 and not self.plain:
            # DeepSpeed's 16-bit wrapper has stepped on zero gradients, which aged Adam's bias correction by one step.
            deepspeed_private.clear_moments(self.engine, self.stage)
        if precision is Precision.fp16:
            # optim.max_skipped ends a run whose loss scale falls for ever, and says what was not finite.
            deepspeed_private.never_give_up(self.engine, self.stage, LOWEST_SCALE)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.forward_clock:
            return self.engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's loss; DeepSpeed divides by accumulation and averages over ranks."""
        self.scale_used = self.loss_scale
        if self.stage == 0 and self.scale_used is not None:
            loss = loss * self.scale_used  # DeepSpeed divides by the scale in `step`, but forgets to multiply here
        self.engine.backward(loss)

    @property
    def loss_scale(self) -> float | None:
        """The factor of the next loss in fp16, so that its gradients fit; None in other precisions."""
        return float(self.scaler().cur_scale) if self.engine.fp16_enabled() else None

    def scaler(self) -> Any:
        """What holds fp16's loss scale, as `cur_scale`."""
        return deepspeed_private.scaler(self.engine, self.stage)

    def step(self, lr: float) -> None:
        """End a micro-batch; at the last one of a step, update the weights with rate `lr`."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()

    def outcome(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(gradient norm before clipping, 1 if the last update was skipped as non-finite else 0), both 0-dim."""
        if self.guard is not None:
            assert self.guard.norm is not None
            assert self.guard.skipped is not None
            return self.guard.norm, self.guard.skipped
        applied = self.engine.was_step_applied()
        self.watch.switch(not applied or self.always_watched)
        if not applied:
            return torch.full((), float("inf"), device=device), torch.ones((), device=device)
        norm = self.engine.get_global_grad_norm()
        norm = norm.detach().float().to(device) if isinstance(norm, Tensor) else torch.full((), norm, device=device)
        if self.stage == 0 and self.scale_used is not None:
            norm = norm / self.scale_used  # at the other stages DeepSpeed has divided already
        return norm.reshape(()), torch.zeros((), device=device)

    def gradients(self) -> Gradients | None:
        """Which gradients of the last step were finite; None where nothing looked. The host computes nothing."""
        if self.guard is None:
            return self.watch.take()
        if self.guard.norms is None:
            return None
        return Gradients([self._names[id(weight)] for weight in self.guard.weights], torch.isfinite(self.guard.norms))

    def save(self, directory: Path) -> None:
        """Write weights and optimizer into `directory/name`; every rank calls it."""
        self.engine.save_checkpoint(str(directory), tag=self.name, save_latest=False)
        if self.engine.global_rank == 0:  # the rank beside whose files DeepSpeed leaves its scripts
            for script in DEEPSPEED_SCRIPTS:
                (directory / script).unlink(missing_ok=True)

    def load(self, directory: Path) -> None:
        """Read what `save` wrote on the same number of ranks at the same stage.

        No code in the files is run; `saved_files.load_saved` has opened each of them before.

        Raises:
            ValueError: DeepSpeed found nothing to load, or something that it did not write.
        """
        try:
            with no_code():
                path, _ = self.engine.load_checkpoint(str(directory), tag=self.name, load_lr_scheduler_states=False)
        except (LookupError, TypeError, AttributeError, pickle.UnpicklingError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ValueError(
                f"checkpoint {directory}: DeepSpeed cannot read its {self.name} ({reason}); use another checkpoint"
            ) from error
        if path is None:
            raise ValueError(f"checkpoint {directory} holds no {self.name} weights; remove the directory")
        # The settings are those of the configuration, which may have changed, and not those in the file.
        for group, settings in zip(self.engine.optimizer.param_groups, self._settings, strict=True):
            group.update(settings)

    @contextlib.contextmanager
    def whole(self, *, write: bool = False) -> Iterator[nn.Module]:
        """The module with every parameter present on every rank; every rank enters.

        Args:
            write: keep what the ranks, all the same, write into the parameters; otherwise it may be lost.
        """
        if self.stage < 3:
            yield self.module
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=0 if write else None):
            yield self.module

    def full_state(self) -> dict[str, Tensor]:
        """fp32 weights and buffers by name, on the host; every rank calls it, every rank gets them."""
        state = {name: buffer.detach().cpu() for name, buffer in self.module.state_dict(keep_vars=True).items()}
        for name, parameter in self.module.named_parameters():
            if name in self.frozen:
                state[name] = self.frozen[name]
            else:
                state[name] = self._master(parameter).detach().float().cpu().clone()
        return state

    @torch.no_grad()
    def restore_frozen(self, weights: dict[str, Tensor]) -> None:
        """Put `frozen` of an earlier part of the run back; every rank calls it."""
        assert weights.keys() == self.frozen.keys()
        self.frozen = weights
        with self.whole(write=True) as module:
            for name, value in weights.items():
                module.get_parameter(name).copy_(value)

    def masters(self) -> list[Tensor]:
        """This rank's fp32 masters, which the optimizer changes in place: weights, or flat shards of weights."""
        if not self.plain:
            return deepspeed_private.masters(self.engine, self.stage)
        weights = self.learning()
        return [weights[name] for name in self._order]

    def learning(self) -> dict[str, nn.Parameter]:
        """Name -> weight that the optimizer changes."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}

    @torch.no_grad()
    def fill(self, flats: list[Tensor], read: Callable[[str, int, int], Tensor]) -> None:
        """Fill tensors that are divided as `masters` are: this rank's masters, moments or averages.

        Args:
            flats: of this rank, one for each of its masters.
            read: (name of a weight, start, count) -> that stretch of the flattened weight or of what belongs to it.
        """
        for name, place in self.places().items():
            if place.length:
                stretch = flats[place.flat].detach().view(-1)[place.offset : place.offset + place.length]
                stretch.copy_(read(name, place.start, place.length))

    def places(self) -> dict[str, deepspeed_private.Place]:
        """For each weight: which stretch of it this rank's masters hold, and where."""
        weights = self.learning()
        if self.stage == 0:
            return {
                name: deepspeed_private.Place(0, weights[name].numel(), index, 0)
                for index, name in enumerate(self._order)
            }
        return dict(deepspeed_private.places(self.engine, self.stage, weights.items()))

    def exact(self, name: str) -> Tensor | None:
        """The whole fp32 master of a weight, on the device; None where the working weights are fp32 themselves.

        Every rank calls it, because it is a collective call at ZeRO 1 to 3.
        """
        return self._master(self.module.get_parameter(name)).detach() if self.rounded else None

    def _master(self, parameter: nn.Parameter) -> Tensor:
        """The whole fp32 master of a weight; a collective call."""
        if self.stage > 0:
            from deepspeed.utils import safe_get_full_fp32_param

            return safe_get_full_fp32_param(parameter)
        if self.plain:
            return parameter
        for weight, master in deepspeed_private.weights_and_masters(self.engine):
            if weight is parameter:
                return master
        raise AssertionError("a weight without a master")


MakeEngine = Callable[[str, nn.Module, EngineSettings], Engine]
"""Puts a network into its engine; an estimate has engines without DeepSpeed."""
