"""Encodes one unit of captions: it makes shards of token embeddings, an index and, last of all, a commit record.

The plan, the encoder and the kind of device alone decide the result, so a second run of a unit gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from data_pipeline.build.unit import UnitReport
from data_pipeline.dataset.fields import canonical_json
from data_pipeline.dataset.index import TextRow
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRow
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.shard_writer import ShardWriter
from data_pipeline.dataset.text_records import TextSettings, UnitTexts
from data_pipeline.dataset.text_tensors import TOKENS
from data_pipeline.dataset.units import commit_unit
from data_pipeline.latents.packing import UnfitLatents, rounded_latents
from trainer.texts.encoder import Tokens

Tokenize: TypeAlias = Callable[[str, int], Tokens]
"""A caption and the most tokens -> its tokens."""
Encode: TypeAlias = Callable[[Sequence[Sequence[int]]], list[Tensor]]
"""The ids of the tokens of some captions -> float32 [L, width] of each, on the host."""
SPLIT = "all"
"""Texts have no splits, because clips of several splits may have the same caption."""


def encode_unit(
    dataset: Dataset,
    unit: int,
    rows: Sequence[PlanRow],
    *,
    tokenize: Tokenize,
    encode: Encode,
    device: str,
    scratch: Path,
) -> UnitReport:
    """Encode and commit one unit.

    Memory holds the embeddings of the unit's captions.

    Args:
        dataset: of the texts.
        rows: the unit's rows of the plan, at least one.
        device: kind of device, for the record.
        scratch: an empty local folder.
    Raises:
        OSError: a store or the disk failed. The unit is not committed and may be encoded again.
        UnitConflict: another run committed this unit with other bytes. Its record is removed; encode the unit again.
    """
    settings = TextSettings.of(dataset.plan.settings)
    writer = ShardWriter(unit, settings.shard_bytes, dataset.store, scratch, TEXTS.payload)
    tokens = [tokenize(row.caption or "", settings.max_tokens) for row in rows]
    samples: list[TextRow] = []
    fates: list[RowFate] = []
    for row, its, hidden in zip(rows, tokens, encode([its.ids for its in tokens]), strict=True):
        try:
            data = rounded_latents({TOKENS: hidden}, settings.dtype).data
        except UnfitLatents as unfit:
            fates.append(RowFate.rejected(row, unfit.reason, {"detail": str(unfit)[:200]}))
            continue
        samples.append(_add_sample(writer, dataset, row, its, data))
        fates.append(RowFate.committed(row, 1))
    writer.close()
    texts = UnitTexts(
        device=device,
        tokens=sum(sample.tokens for sample in samples),
        truncated=sum(sample.caption_tokens > sample.tokens for sample in samples),
    )
    commit_unit(dataset, unit, shards=writer.shards, samples=samples, fates=fates, texts=texts)
    return UnitReport(
        unit,
        len(rows),
        items=len(samples),
        bytes=sum(shard.bytes for shard in writer.shards),
        fates=Counter(fate.fate for fate in fates),
    )


def _add_sample(writer: ShardWriter, dataset: Dataset, row: PlanRow, tokens: Tokens, data: bytes) -> TextRow:
    """Append the embeddings of one caption to the shards.

    Args:
        data: the payload, rounded to the dataset's type.
    Returns:
        The sample's row of the index.
    """
    settings = TextSettings.of(dataset.plan.settings)
    description = {
        "tokens": len(tokens.ids),
        "caption_tokens": tokens.whole,
        "dtype": settings.dtype.value,
        "encoder": settings.encoder,
        "versions": dataset.plan.encoder,
    }
    place = writer.add(
        row.id, SPLIT, description=canonical_json(description), payload=data, caption=(row.caption or "").encode()
    )
    return TextRow(
        key=row.id,
        **asdict(place),
        split=SPLIT,
        row=row.row,
        tokens=len(tokens.ids),
        caption_tokens=tokens.whole,
    )
