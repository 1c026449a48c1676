"""The plan of a dataset of texts: its units are ranges of the sorted distinct captions, one row for each caption.

A row has the columns of PLAN_SCHEMA: `id` is the SHA-256 of the caption, `caption` its text. The first segment has the
captions that the latents had at first; each later one has those that were new at a later start.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_pipeline.dataset.captions import caption_digest
from data_pipeline.dataset.kind import LATENTS, TEXTS
from data_pipeline.dataset.plan import PLAN_KEY, Dataset, Plan, Segment, read_plan
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA, read_part
from data_pipeline.dataset.plan_rows import write_parts
from data_pipeline.dataset.row_tables import DIGEST_ROWS, RowsDigest
from data_pipeline.dataset.settings_difference import refuse_differences, refuse_other_kind, settings_difference
from data_pipeline.dataset.text_records import TextSettings
from data_pipeline.dataset.unit_cuts import even_cuts
from data_pipeline.store.base import Store
from data_pipeline.texts.source import TEXT, Captions, distinct_captions

CAPTIONS = "captions"
"""Kind of the segments."""


@dataclass(frozen=True)
class Planned:
    """A plan, and how many captions this call has added to it."""

    dataset: Dataset
    fresh: bool  # whether nothing was planned before
    new: int


def plan_texts(captions: Captions, store: Store, settings: TextSettings, encoder: str) -> Planned:
    """Plan all captions, or those that an existing plan does not have.

    Args:
        store: the output.
        encoder: version of program, torch and transformers.
    Raises:
        ValueError: the output is of another kind, encoder, settings or versions, with the difference.
    """
    old = earlier_plan(store, settings, encoder)
    plan, texts = old or Plan(encoder=encoder, settings=settings.to_settings(), segments=()), captions.texts
    if old is not None:
        texts = texts.filter(pc.invert(pc.is_in(texts, _planned(Dataset(store, old)))))
    if not len(texts):
        return Planned(Dataset(store, plan), False, 0)
    segment = next_segment(plan, texts, captions.index, settings.unit_captions)
    write_parts(store, segment, _rows(texts, segment.first_row))
    plan = plan.grown(segment)
    if old is not None:
        store.write(PLAN_KEY, plan.to_json())
    elif not store.put_if_absent(PLAN_KEY, plan.to_json()) and read_plan(store) != plan:
        raise ValueError(f"{store.uri()} was planned by another run meanwhile; run the same command again")
    return Planned(Dataset(store, plan), old is None, len(texts))


def earlier_plan(store: Store, settings: TextSettings, encoder: str) -> Plan | None:
    """The plan that lies on the output; None where nothing was planned there. No caption is read.

    Args and Raises: as `plan_texts`.
    """
    try:
        old = read_plan(store)
    except FileNotFoundError:
        return None
    refuse_other_kind(Dataset(store, old), TEXTS)
    difference = settings_difference(old.settings, settings.to_settings())
    if old.encoder != encoder:
        difference.append(f"versions: {old.encoder} -> {encoder}")
    refuse_differences(store, difference)
    return old


def next_segment(plan: Plan, texts: pa.Array, index: str, unit_captions: int) -> Segment:
    """The segment of sorted captions at the end of a plan.

    Args:
        index: SHA-256 of the index of the latents that have the captions.
        unit_captions: captions of one unit; the last unit may have fewer.
    """
    digest = RowsDigest()
    for batch in _rows(texts, 1):
        digest.add(pa.Table.from_batches([batch]))
    return Segment(
        kind=CAPTIONS,
        parent=len(plan.segments),
        name=CAPTIONS,
        digest=digest.hexdigest(),
        file_sha256=index,
        rows=len(texts),
        duplicates=0,
        first_row=plan.rows + 1,
        first_unit=plan.units,
        cuts=even_cuts(len(texts), unit_captions),
    )


def missing_captions(texts: Store, latents: Store) -> list[str]:
    """What a check of texts against their latents finds: a line where the texts lack captions.

    Raises:
        ValueError: one of the two is no dataset of its kind, or a sample is damaged.
    """
    dataset = Dataset.open(texts, TEXTS)
    found = distinct_captions(latents, named="--source ").texts
    lacking = found.filter(pc.invert(pc.is_in(found, _planned(dataset))))
    if not len(lacking):
        return []
    first = lacking[0].as_py()
    return [
        f"{len(lacking)} captions of the {LATENTS.name} have no embedding (first: {first[:80]!r}); "
        f"run {TEXTS.made_by} again"
    ]


def _planned(dataset: Dataset) -> pa.ChunkedArray:
    """The captions of all segments of a plan."""
    pieces = [
        read_part(dataset.store, key, ["caption"]).column("caption")
        for segment in dataset.plan.segments
        for key in segment.part_keys
    ]
    return pa.chunked_array([chunk.cast(TEXT) for piece in pieces for chunk in piece.chunks], TEXT)


def _rows(texts: pa.Array, first_row: int) -> Iterator[pa.RecordBatch]:
    """The rows of a segment, with the columns of PLAN_SCHEMA, DIGEST_ROWS at a time."""
    for begin in range(0, len(texts), DIGEST_ROWS):
        some = texts.slice(begin, DIGEST_ROWS)
        count = len(some)
        nothing, empty = pa.nulls(count, pa.float64()), pa.array([""] * count, pa.string())
        columns = {
            "row": pa.array(range(first_row + begin, first_row + begin + count), pa.int64()),
            "id": pa.array([caption_digest(text) for text in some.to_pylist()], pa.string()),
            "video": empty,
            "caption": some,
            "start": nothing,
            "end": nothing,
            "label": empty,
            "split": empty,
            "extra": empty,
            "duplicate_of": pa.nulls(count, pa.int64()),
            "retry_of": empty,
        }
        yield from pa.Table.from_pydict(columns).cast(PLAN_SCHEMA).combine_chunks().to_batches()
