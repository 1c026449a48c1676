"""An engine's state in a checkpoint, by the names of its weights, whatever ranks and ZeRO stage wrote it.

DeepSpeed 0.19 writes flat tensors, a rank's weights and Adam's two moments cut alike:
    ZeRO 0      whole tensors in the order of the parameters, by rank 0
    ZeRO 1, 2   all weights flattened and laid end to end, cut into as many parts as there are ranks
    ZeRO 3      each weight flattened and cut by itself, every part as long as the first
The moving average (`ema.py`) is cut like the weights. Files are mapped, not read: only what is asked for comes into
memory, a stretch of one weight at a time. No code in them is run, and neither DeepSpeed nor a GPU is needed.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHT, AVERAGE = "weight", "average"
MOMENTS = ("exp_avg", "exp_avg_sq")
FROZEN_FILE = "frozen.safetensors"
"""In a checkpoint: exact values of what does not learn."""


@dataclass(frozen=True)
class Division:
    """What decides how an engine's state is cut into files."""

    ranks: int
    stage: int
    precision: str

    def __str__(self) -> str:
        return f"{self.ranks} {'rank' if self.ranks == 1 else 'ranks'}, ZeRO stage {self.stage}, {self.precision}"


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + count) of a flattened weight lie in flat tensor number `flat`, from `offset` on."""

    start: int
    count: int
    flat: int
    offset: int


@dataclass
class _Share:
    """What one rank wrote: where its pieces lie, and the flat tensors of each kind; None = no optimizer step yet."""

    pieces: dict[str, Piece]
    flats: dict[str, list[Tensor | None]]
    ages: set[float] = field(default_factory=set)


class SavedEngine:
    """The files of one engine, of any number of ranks and any ZeRO stage.

    Attributes:
        division: how they are cut.
        micro_batch: clips that a rank put through the network at once.
        shapes: of every weight that learns, by name.
        buffers: by name, as rank 0 had them.
        counters: DeepSpeed's own.

    Args:
        directory: the engine's folder in a checkpoint.
        averages: the files of its moving average in the order of the ranks; none if there is no average.
        frozen: weights that do not learn, by name; they have no masters, and are kept outside the engine's files.
    Raises:
        ValueError: a file is missing, or of an unknown layout; the message names it.
    """

    def __init__(
        self, directory: Path, averages: Sequence[Path] = (), frozen: Mapping[str, Tensor] | None = None
    ) -> None:
        self.directory = directory
        self.frozen = dict(frozen or {})
        self._averages = averages
        self._first = first = load_mapped(_by_rank(directory, "*_model_states.pt")[0])
        config = first["ds_config"]
        precision = next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")
        self.division = Division(first["dp_world_size"], int(config["zero_optimization"]["stage"]), precision)
        self.micro_batch = int(config["train_micro_batch_size_per_gpu"])
        self.counters = {name: first[name] for name in ("global_steps", "global_samples", "skipped_steps")}
        self.buffers: dict[str, Tensor] = {name: first["module"][name] for name in first["buffer_names"]}
        if self.division.stage == 0:
            learning = [name for name in first["module"] if name not in self.buffers and name not in self.frozen]
            self.shapes = {name: first["module"][name].shape for name in learning}
        else:
            self.shapes = {name: torch.Size(shape) for group in first["param_shapes"] for name, shape in group.items()}

    # ---- the values ------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> float:
        """Optimizer steps taken, Adam's count; 0 = none yet."""
        ages = set().union(*(share.ages for share in self._shares)) or {0.0}
        if len(ages) > 1:
            raise ValueError(
                f"{self.directory}: weights have taken different numbers of optimizer steps ({sorted(ages)}); go on "
                "from it with the ranks, zero.stage and precision that wrote it"
            )
        return ages.pop()

    @property
    def loss_scale(self) -> float | None:
        """The dynamic one of fp16; else None."""
        if self.division.precision != "fp16":
            return None
        if self.division.stage == 0:
            return float(self._first["optimizer"]["cur_scale"])
        return float(next(self._optimizers())["loss_scaler"].cur_scale)

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements [start, start + count) of the flattened weight `name`, or of its moment or average, fp32.

        Zeros for moments that do not exist before the optimizer's first step.
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
        """The weight `name`, or its moment or average, in its own shape, fp32."""
        shape = self.shapes[name]
        return self.read(kind, name, 0, shape.numel()).reshape(shape)

    def state(self, kind: str = WEIGHT) -> dict[str, Tensor]:
        """Every weight (or its average) and buffer by name, fp32: what `Engine.full_state` gives on a live engine."""
        return self.buffers | self.frozen | {name: self.whole(kind, name) for name in self.shapes}

    # ---- the files -------------------------------------------------------------------------------------------------

    @cached_property
    def _shares(self) -> list[_Share]:
        """One for each rank that wrote some; read when a value is first asked for."""
        shares = [self._whole()] if self.division.stage == 0 else self._parts()
        if self._averages:
            for share, file in zip(shares, self._averages[: len(shares)], strict=True):
                share.flats[AVERAGE] = load_mapped(file)
        return shares

    def _whole(self) -> _Share:
        """ZeRO 0: weights in the module's order; in 16 bits their masters are the optimizer's."""
        module, optimizer = self._first["module"], self._first["optimizer"]
        pieces = {name: Piece(0, shape.numel(), index, 0) for index, (name, shape) in enumerate(self.shapes.items())}
        if self.division.precision == "fp32":
            return _share(pieces, [module[name] for name in self.shapes], optimizer["state"])
        masters = [master for group in optimizer["fp32_groups"] for master in group]
        return _share(pieces, masters, optimizer["optimizer_state_dict"]["state"])

    def _parts(self) -> list[_Share]:
        """ZeRO 1 to 3: one optimizer file a rank."""
        ranks, shares = self.division.ranks, []
        reached = dict.fromkeys(self.shapes, 0)
        for rank, state in enumerate(self._optimizers()):
            if self.division.stage == 3:
                pieces = _pieces_each_cut(self._first["param_shapes"], rank, ranks)
                shares.append(_share(pieces, state["fp32_flat_groups"], state["optimizer_state_dict"]["state"]))
            else:
                pieces = _pieces_end_to_end(state["param_slice_mappings"], reached)
                base = state["base_optimizer_state"]["state"]
                shares.append(_share(pieces, state["single_partition_of_fp32_groups"], base))
        return shares

    def _optimizers(self) -> Iterator[dict[str, Any]]:
        for file in _by_rank(self.directory, "*_optim_states.pt", self.division.ranks):
            yield load_mapped(file)["optimizer_state_dict"]


def _share(pieces: dict[str, Piece], weights: Sequence[Tensor], state: dict[int, dict[str, Any]]) -> _Share:
    flats: dict[str, list[Tensor | None]] = {WEIGHT: list(weights)}
    for kind in MOMENTS:
        flats[kind] = [state[index][kind] if index in state else None for index in range(len(weights))]
    return _Share(pieces, flats, {float(entry["step"]) for entry in state.values()})


def _pieces_end_to_end(mappings: list[dict[str, Any]], reached: dict[str, int]) -> dict[str, Piece]:
    """Stages 1 and 2, one rank; `reached`: elements of each weight that the ranks before hold, moved on here."""
    pieces = {}
    for flat, group in enumerate(mappings):
        for name, address in group.items():
            pieces[name] = Piece(reached[name], address.numel, flat, address.start)
            reached[name] += address.numel
    return pieces


def _pieces_each_cut(groups: list[dict[str, Any]], rank: int, ranks: int) -> dict[str, Piece]:
    """Stage 3, one rank: ceil(n / ranks) elements of each weight of n; the padding behind the last is no piece."""
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
    """Where a rank's part of the moving average is in a checkpoint."""
    return directory / f"ema-{rank:05d}.pt"


def average_files(directory: Path) -> list[Path]:
    """Those of all ranks, in their order; none where there was no average."""
    return sorted(directory.glob("ema-*.pt"))


class _Inert:
    """Stands for a DeepSpeed object in a file: its attributes, none of its code."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_STAND_INS: list[Any] = [
    (_Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


def load_mapped(file: Path) -> Any:
    """A file of `torch.save` with its tensors left on disk until they are used, and none of its code run.

    Raises:
        ValueError: the file is missing, damaged, or holds objects that are not DeepSpeed's.
    """
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"checkpoint file {file} not found; use another checkpoint") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"checkpoint file {file} holds no state of an engine ({str(error).splitlines()[0]})"
        ) from error


def _by_rank(directory: Path, pattern: str, count: int | None = None) -> list[Path]:
    """Files whose names carry the number of a rank, in the order of the ranks."""

    def rank(file: Path) -> int:
        return int(file.name.partition("pp_rank_")[2].partition("_")[0] or 0)

    files = sorted(directory.glob(pattern), key=rank)
    if not files or (count is not None and [rank(file) for file in files] != list(range(count))):
        raise ValueError(
            f"{directory} holds {len(files)} of {count or 'the'} {pattern} files; it is no complete checkpoint of an "
            "engine: use another one"
        )
    return files
