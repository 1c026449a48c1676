"""An engine's state in a checkpoint, by the names of its weights, for any number of ranks and any ZeRO stage.

DeepSpeed 0.19 writes flat tensors and divides the weights and Adam's two moments in the same way:
    ZeRO 0      whole tensors in the optimizer's order of the parameters, written by rank 0
    ZeRO 1, 2   the weights of a group flattened and laid end to end, divided into as many parts as there are ranks
    ZeRO 3      each weight flattened and divided by itself, every part as long as the first
With `optim.decay=matrices` the optimizer has two groups (`trainer/engine/optimizer.py`), else one.
The moving average (`trainer/engine/ema.py`) is divided like the weights. Files are mapped into memory and not read, so
only the stretches that are asked for are loaded. No code in the files is run. Neither DeepSpeed nor a GPU is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config.learning import Decay
from trainer.engine.optimizer import weight_groups
from trainer.engine.saved_files import load_saved

WEIGHT, AVERAGE = "weight", "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
FROZEN_FILE = "frozen.safetensors"
"""The file of a checkpoint with the exact values of the weights that do not learn."""


@dataclass(frozen=True)
class Sharding:
    """What decides how an engine's state is divided into files.

    Attributes:
        groups: parts of the weights that are divided one after the other: the optimizer's groups (`optim.decay`), of
            which ZeRO 3 divides very large ones further.
    """

    ranks: int
    stage: int
    precision: str
    groups: int = 1

    def __str__(self) -> str:
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'}, ZeRO stage {self.stage}, {self.precision}"


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + count) of a flattened weight; they lie in flat tensor `flat` from `offset` on."""

    start: int
    count: int
    flat: int
    offset: int


@dataclass
class _Share:
    """What one rank wrote: the places of its pieces, and the flat tensors of each kind.

    A flat tensor of a moment is None before the optimizer's first step.
    """

    pieces: dict[str, Piece]
    flats: dict[str, list[Tensor | None]]
    ages: set[float] = field(default_factory=set)


class SavedEngine:
    """The files of one engine, of any number of ranks and any ZeRO stage.

    Attributes:
        sharding: how the state is divided into files.
        micro_batch: clips that a rank put through the network at once.
        shapes: name -> shape of every weight that learns.
        buffers: name -> value on rank 0.
        counters: DeepSpeed's counters of steps and samples.

    Args:
        directory: the engine's folder in a checkpoint.
        averages: the files of its moving average in the order of the ranks; empty if it has no average.
        frozen: name -> weight that does not learn; such weights have no masters and are not in the engine's files.
    Raises:
        ValueError: a file is missing or has an unknown layout; the message names it.
    """

    def __init__(
        self, directory: Path, averages: Sequence[Path] = (), frozen: Mapping[str, Tensor] | None = None
    ) -> None:
        self.directory = directory
        self.frozen = dict(frozen or {})
        self._averages = averages
        with _understood(directory):
            self._read_first(load_saved(_by_rank(directory, "*_model_states.pt")[0]))

    def _read_first(self, first: dict[str, Any]) -> None:
        """Take from rank 0's file what it says of the whole engine."""
        self._first = first
        config = first["ds_config"]
        precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")
        stage = int(config["zero_optimization"]["stage"])
        self.sharding = Sharding(first["dp_world_size"], stage, precision, _groups(first, stage, precision))
        self.micro_batch = int(config["train_micro_batch_size_per_gpu"])
        self.counters = {name: first[name] for name in ("global_steps", "global_samples", "skipped_steps")}
        self.buffers: dict[str, Tensor] = {name: first["module"][name] for name in first["buffer_names"]}
        if self.sharding.stage == 0:
            learning = [name for name in first["module"] if name not in self.buffers and name not in self.frozen]
            self.shapes = {name: first["module"][name].shape for name in learning}
        else:
            self.shapes = {name: torch.Size(shape) for group in first["param_shapes"] for name, shape in group.items()}

    # ---- the values ------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> float:
        """Adam's count of optimizer steps; 0 before the first step."""
        ages = set().union(*(share.ages for share in self._shares)) or {0.0}
        if len(ages) > 1:
            raise ValueError(
                f"{self.directory}: weights have taken different numbers of optimizer steps ({sorted(ages)}); go on "
                "from it with the ranks, zero.stage and precision that wrote it"
            )
        return ages.pop()

    @property
    def loss_scale(self) -> float | None:
        """The dynamic loss scale in fp16; None in other precisions."""
        if self.sharding.precision != "fp16":
            return None
        if self.sharding.stage == 0:
            return float(self._first["optimizer"]["cur_scale"])
        return float(next(self._optimizers())["loss_scaler"].cur_scale)

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of the flattened weight `name`, or of its moment or average, in fp32.

        Before the optimizer's first step the moments do not exist, and their elements are zeros.
        """
        values = torch.zeros(count)
        for share in self._shares:
            piece = share.pieces.get(name)
            if piece is None:
                continue
            low, high = max(start, piece.start), min(start + count, piece.start + piece.count)
            flat = share.flats[kind][piece.flat]
            if low < high and flat is not None:
                begin = piece.offset + low - piece.start
                values[low - start : high - start] = flat.detach().flatten()[begin : begin + high - low]
        return values

    def whole(self, kind: str, name: str) -> Tensor:
        """The weight `name`, or its moment or average, in the weight's shape, in fp32."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, shape.numel()).reshape(shape)

    def state(self, kind: str = WEIGHT) -> dict[str, Tensor]:
        """Name -> weight (or its average) or buffer, in fp32: the same as `Engine.full_state` of a live engine."""
        return self.buffers | self.frozen | {name: self.whole(kind, name) for name in self.shapes}

    # ---- the files -------------------------------------------------------------------------------------------------

    @cached_property
    def _shares(self) -> list[_Share]:
        """One share for each rank that wrote weights. The files are opened when a value is first asked for."""
        with _understood(self.directory):
            shares = [self._whole()] if self.sharding.stage == 0 else self._parts()
            if self._averages:
                for share, file in zip(shares, self._averages[: len(shares)], strict=True):
                    share.flats[AVERAGE] = load_saved(file)
            return shares

    def _whole(self) -> _Share:
        """The one share of ZeRO 0: weights in the optimizer's order. In 16 bits the optimizer holds their masters."""
        module, optimizer = self._first["module"], self._first["optimizer"]
        decay = Decay.all if self.sharding.groups == 1 else Decay.matrices
        order = [name for names, _ in weight_groups(self.shapes, decay) for name in names]
        pieces = {name: Piece(0, self.shapes[name].numel(), index, 0) for index, name in enumerate(order)}
        if self.sharding.precision == "fp32":
            return _share(pieces, [module[name] for name in order], optimizer["state"])
        masters = [master for group in optimizer["fp32_groups"] for master in group]
        return _share(pieces, masters, optimizer["optimizer_state_dict"]["state"])

    def _parts(self) -> list[_Share]:
        """The shares of ZeRO 1 to 3: each rank wrote one optimizer file."""
        ranks, shares = self.sharding.ranks, []
        reached = dict.fromkeys(self.shapes, 0)
        for rank, state in enumerate(self._optimizers()):
            if self.sharding.stage == 3:
                pieces = _pieces_each_cut(self._first["param_shapes"], rank, ranks)
                shares.append(_share(pieces, state["fp32_flat_groups"], state["optimizer_state_dict"]["state"]))
            else:
                pieces = _pieces_end_to_end(state["param_slice_mappings"], reached)
                base = state["base_optimizer_state"]["state"]
                shares.append(_share(pieces, state["single_partition_of_fp32_groups"], base))
        return shares

    def _optimizers(self) -> Iterator[dict[str, Any]]:
        for file in _by_rank(self.directory, "*_optim_states.pt", self.sharding.ranks):
            yield load_saved(file)["optimizer_state_dict"]


def _groups(first: dict[str, Any], stage: int, precision: str) -> int:
    """Into how many groups the weights are divided, from rank 0's file."""
    if stage > 0:
        return len(first["param_shapes"])
    optimizer = first["optimizer"]
    return len(optimizer["param_groups"] if precision == "fp32" else optimizer["fp32_groups"])


def _share(pieces: dict[str, Piece], weights: Sequence[Tensor], state: dict[int, dict[str, Any]]) -> _Share:
    flats: dict[str, list[Tensor | None]] = {WEIGHT: list(weights)}
    for kind in MOMENTS:
        flats[kind] = [state[index][kind] if index in state else None for index in range(len(weights))]
    return _Share(pieces, flats, {float(entry["step"]) for entry in state.values()})


def _pieces_end_to_end(mappings: list[dict[str, Any]], reached: dict[str, int]) -> dict[str, Piece]:
    """The pieces of one rank at stages 1 and 2.

    Args:
        reached: name -> elements of the weight that lower ranks hold; this rank's elements are added to it.
    """
    pieces = {}
    for flat, group in enumerate(mappings):
        for name, address in group.items():
            pieces[name] = Piece(reached[name], address.numel, flat, address.start)
            reached[name] += address.numel
    return pieces


def _pieces_each_cut(groups: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Piece]:
    """The pieces of one rank at stage 3: ceil(n / ranks) elements of a weight of n elements, without the padding."""
    pieces = {}
    for flat, group in enumerate(groups):
        offset = 0
        for name, shape in group.items():
            total = math.prod(shape)
            part = math.ceil(total / ranks)
            pieces[name] = Piece(rank * part, max(0, min(part, total - rank * part)), flat, offset)
            offset += part
    return pieces


def average_file(directory: Path, rank: int) -> Path:
    """The file of a rank's part of the moving average in a checkpoint."""
    return directory / f"ema-{rank:05d}.pt"


def average_files(directory: Path) -> list[Path]:
    """The files of all ranks' parts in the order of the ranks; empty in a checkpoint without an average."""
    return sorted(directory.glob("ema-*.pt"))


@contextmanager
def _understood(directory: Path) -> Iterator[None]:
    """Inside, a file whose values have other names, types or sizes than DeepSpeed writes is a ValueError."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{directory} holds a state of an unknown layout ({type(error).__name__}: {error}); use another checkpoint"
        ) from error


def _by_rank(directory: Path, pattern: str, count: int | None = None) -> list[Path]:
    """The files that match `pattern`, whose names carry a rank's number, in the order of the ranks."""

    def rank(file: Path) -> int:
        return int(file.name.partition("pp_rank_")[2].partition("_")[0] or 0)

    files = sorted(directory.glob(pattern), key=rank)
    ranks = [rank(file) for file in files]
    if not files or (count is not None and (len(ranks) != count or ranks != list(range(count)))):
        raise ValueError(
            f"{directory} holds {len(files)} of {count or 'the'} {pattern} files; it is no complete checkpoint of an "
            "engine: use another one"
        )
    return files
