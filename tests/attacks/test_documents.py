"""JSON of strangers inside of samples and plans is refused in one line, however deeply it is nested."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from data_pipeline.dataset.captions import captions_of
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_parts import PLAN_SCHEMA
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.tar import ClipError
from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from trainer.latents.sample_metadata import METADATA_KEY, read_sample_metadata

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("description", [f'{{"captions": {DEEP}}}', '{"captions": ' + "9" * 5000 + "}", '{"captions"'])
def test_a_description_that_cannot_be_read_is_a_bad_sample(description: str) -> None:
    with pytest.raises(ClipError, match="has a description that cannot be read"):
        captions_of(description.encode(), b"words")


def test_a_sample_whose_description_is_nested_deeply_is_refused_by_its_file(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {METADATA_KEY: DEEP})
    with pytest.raises(ValueError, match=r"a\.safetensors has metadata that cannot be read .*nested too deeply"):
        read_sample_metadata(tmp_path / "a.safetensors")


class OnePart:
    """A store and a plan with one part file."""

    rows = 1

    def __init__(self, table: pa.Table) -> None:
        file = BytesIO()
        pq.write_table(table, file)
        self.data = file.getvalue()

    def read(self, key: str) -> bytes:
        return self.data

    def uri(self, key: str) -> str:
        return f"/dataset/{key}"

    def segment_of(self, unit: int) -> Any:
        return SimpleNamespace(
            rows=1,
            part_of=lambda unit: 0,
            part_key=lambda part: "plan/p.parquet",
            bounds=lambda unit: (0, 0),
            part_starts=[0],
        )


@pytest.mark.parametrize("table", [pa.table({"rowx": [1]}), PLAN_SCHEMA.empty_table().drop_columns(["id"])])
def test_a_part_of_a_plan_with_other_columns_is_refused_by_its_key(table: pa.Table) -> None:
    part = OnePart(table)
    with pytest.raises(ValueError, match=r"/dataset/plan/p\.parquet has not the columns of a plan"):
        PlanRows(cast(Dataset, SimpleNamespace(store=part, plan=part))).table(0)


@pytest.mark.parametrize("section", ["structure", "dynamics"])
def test_halvings_beyond_the_grid_are_refused_at_once(section: str) -> None:
    """28 patches a side become 14, 7, 4, 2 and 1 by convolutions of stride 2, so five are the most."""
    sections: dict[str, Any] = {"structure": StructureConfig(), "dynamics": DynamicsConfig()}
    sections[section].downsamplings = 10**15
    with pytest.raises(ValueError, match=f"{section}.downsamplings=1000000000000000 halves the 28x28 .* at most 5"):
        VidTwinConfig(image_size=224, patch_size=8, **sections)
