"""The samples of a dataset of texts: `<key>.json`, `<key>.safetensors` and `<key>.txt`, and how they are proven.

The key is the SHA-256 of the caption. The safetensors file holds one tensor, `tokens` [L, width], the encoder's last
hidden state of the caption's L tokens, without padding. The `.json` has these fields:

    tokens           L
    caption_tokens   tokens of the whole caption; more than L where the caption was cut
    dtype, encoder, versions
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipeline.dataset.index import SampleRow, TextRow
from data_pipeline.dataset.kind import TEXTS
from data_pipeline.dataset.latent_tensors import read_tensors
from data_pipeline.dataset.plan import Plan
from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.dataset.text_records import TextSettings, UnitTexts
from data_pipeline.dataset.units import CommittedUnit
from data_pipeline.outside.regular import open_regular

TOKENS = "tokens"
"""The tensor of a sample."""


def wrong_texts(path: Path, samples: Sequence[SampleRow], plan: Plan) -> Iterator[str]:
    """Compare the captions and tensors of a shard, whose bytes are those of the index, with the plan.

    Args:
        path: local file of the shard.
        samples: the rows of the index of the shard's samples.
    """
    width = TextSettings.of(plan.settings).width
    with open_regular(path) as file:
        for sample in samples:
            assert isinstance(sample, TextRow)
            file.seek(sample.offset)
            members = parse_members(file.read(sample.size), sample.key)
            if hashlib.sha256(members["txt"]).hexdigest() != sample.key:
                yield f"sample {sample.key} holds another caption than its key says"
            try:
                tensors = read_tensors(members[TEXTS.payload.removeprefix(".")])
            except ClipError as error:
                yield f"sample {sample.key} {error}"
                continue
            found = {name: tensor.shape for name, tensor in tensors.items()}
            if found != {TOKENS: (sample.tokens, width)}:
                yield f"sample {sample.key} has tensors of the shapes {found}, not {TOKENS} {[sample.tokens, width]}"
            elif not np.isfinite(tensors[TOKENS]).all():
                yield f"sample {sample.key} has values that are infinite or no number"


def wrong_counts(unit: CommittedUnit) -> Iterator[str]:
    """Compare the counts of a unit's commit record with its index."""
    tokens, whole = (unit.index.column(name).to_pylist() for name in ("tokens", "caption_tokens"))
    cut = sum(stored < all_of_it for stored, all_of_it in zip(tokens, whole, strict=True))
    recorded: UnitTexts | None = unit.record.texts
    if recorded is None or (recorded.tokens, recorded.truncated) != (sum(tokens), cut):
        yield f"its counts are not those of its index, which has {sum(tokens)} tokens and {cut} captions that were cut"
