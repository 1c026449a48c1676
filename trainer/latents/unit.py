"""Encodes one unit, which is one source shard: it makes shards of latents, an index and, last of all, a commit record.

The plan, the clips, the model and the kind of device alone decide the result. Windows go through the model in the order
of the clips, always as many together, so a second run of a unit gives the same bytes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from data_pipeline.build.unit import UnitReport
from data_pipeline.dataset.latent_records import UnitLatents
from data_pipeline.dataset.ledger import row_reason
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RejectedStretch, RowFate
from data_pipeline.dataset.units import commit_unit
from data_pipeline.latents.clips import DecodedClip
from data_pipeline.latents.packing import LatentPacker, UnfitLatents, Window, rounded_latents

ReadClip: TypeAlias = Callable[[PlanRow], DecodedClip | RowFate]


class Encoder(Protocol):
    """What turns windows into latents: `WindowEncoder.encode`, or a stand-in for tests."""

    def __call__(self, video: Tensor) -> list[dict[str, Tensor]]:
        """The tensors of each of uint8 windows [b, 3, T, S, S]."""


@dataclass
class _RowInWork:
    """A clip whose windows are on their way through the model."""

    row: PlanRow
    stored: int = 0  # windows
    refused: list[RejectedStretch] = field(default_factory=list)
    fate: RowFate | None = None  # of a clip that gave no window to the model

    def ended(self) -> RowFate:
        """The entry in the commit record."""
        if self.fate is not None:
            return self.fate
        if self.stored:
            return RowFate.committed(self.row, self.stored, self.refused)
        reason = row_reason(stretch.reason for stretch in self.refused)
        return RowFate.rejected_in_parts(self.row, reason, self.refused)


_WindowInWork: TypeAlias = tuple[_RowInWork, DecodedClip, Window]


def encode_unit(
    dataset: Dataset,
    unit: int,
    rows: list[PlanRow],
    *,
    read: ReadClip,
    encode: Encoder,
    batch: int,
    decoders: int,
    device: str,
    scratch: Path,
) -> UnitReport:
    """Encode and commit one unit.

    Memory holds the decoded frames of at most `2 * decoders + 2 * batch` clips, and one shard's index.

    Args:
        dataset: of the latents.
        rows: the unit's rows of the plan.
        read: decodes the clip of a row; called from `decoders` threads.
        encode: the model.
        batch: windows that go through the model together.
        device: kind of device, for the record.
        scratch: an empty local folder.
    Raises:
        OSError: a store or the disk failed. The unit is not committed and may be encoded again.
        UnitConflict: another run committed this unit with other bytes. Its record is removed; encode the unit again.
    """
    packer = LatentPacker(dataset, unit, scratch)
    work = [_RowInWork(row) for row in rows]
    with ThreadPoolExecutor(1, thread_name_prefix="pack") as packing:
        packed: Future[None] | None = None
        for windows in _batched(_windows(work, _read_ahead(rows, read, decoders)), batch):
            video = torch.from_numpy(np.stack([clip.pixels(window) for _, clip, window in windows]))
            found = encode(video)
            if packed is not None:
                packed.result()
            packed = packing.submit(_pack, packer, windows, found)  # beside the model's work on the next windows
        if packed is not None:
            packed.result()
    latents = packer.close(device if packer.samples else "")
    fates = [row.ended() for row in work]
    shards = packer.writer.shards
    commit_unit(dataset, unit, shards=shards, samples=packer.samples, fates=fates, latents=latents)
    return UnitReport(
        unit,
        len(rows),
        items=len(packer.samples),
        bytes=sum(shard.bytes for shard in shards),
        fates=Counter(fate.fate for fate in fates),
    )


def _pack(packer: LatentPacker, windows: list[_WindowInWork], found: list[dict[str, Tensor]]) -> None:
    """Add the latents of some windows, or the reasons why they cannot be stored."""
    for (row, clip, window), tensors in zip(windows, found, strict=True):
        try:
            packer.add(clip.clip, window, rounded_latents(tensors, packer.settings.dtype))
            row.stored += 1
        except UnfitLatents as unfit:
            row.refused.append(_refused(packer, clip, window, unfit))


def encode_nothing(dataset: Dataset, unit: int) -> UnitReport:
    """Commit a unit that has no rows. Raises: as `encode_unit`."""
    latents = UnitLatents(device="", sums={}, rounding={})
    commit_unit(dataset, unit, shards=[], samples=[], fates=[], latents=latents)
    return UnitReport(unit, 0)


def _read_ahead(rows: list[PlanRow], read: ReadClip, decoders: int) -> Iterator[DecodedClip | RowFate]:
    """What `read` returns for each row, in order. As many threads decode, two clips each ahead of the model."""
    with ThreadPoolExecutor(decoders, thread_name_prefix="decode") as pool:
        waiting: deque[Future[DecodedClip | RowFate]] = deque()
        try:
            for row in rows:
                waiting.append(pool.submit(read, row))
                if len(waiting) >= 2 * decoders:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _windows(work: list[_RowInWork], found: Iterable[DecodedClip | RowFate]) -> Iterator[_WindowInWork]:
    """All windows of the unit in order. A row that gives none gets its fate."""
    for row, clip in zip(work, found, strict=True):
        if isinstance(clip, RowFate):
            row.fate = clip
            continue
        for window in clip.windows:
            yield row, clip, window


def _batched(windows: Iterator[_WindowInWork], size: int) -> Iterator[list[_WindowInWork]]:
    held: list[_WindowInWork] = []
    for window in windows:
        held.append(window)
        if len(held) == size:
            yield held
            held = []
    if held:
        yield held


def _refused(packer: LatentPacker, clip: DecodedClip, window: Window, unfit: UnfitLatents) -> RejectedStretch:
    start, end = packer.times(clip.clip, window)
    return RejectedStretch(
        clip=window.number, start=start, end=end, reason=unfit.reason, measured={"detail": str(unfit)[:200]}
    )
