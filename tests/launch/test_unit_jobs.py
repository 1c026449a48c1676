"""What the scripts share that run the units of a dataset."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.dataset.plan import PLAN_KEY, Plan
from launch import build_shards, encode_latents, encode_text

SCRIPTS = {"clips": build_shards, "latents": encode_latents, "texts": encode_text}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_the_status_of_a_dataset_of_another_kind_names_its_script(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / kind
    place.mkdir()
    settings = {} if kind == "clips" else {"kind": kind}
    (place / PLAN_KEY).write_bytes(Plan(encoder="none", settings=settings, segments=()).to_json())
    own = f"launch/{SCRIPTS[kind].__name__.rpartition('.')[2]}.py"
    for asked, script in SCRIPTS.items():
        status = script.main(["--output", str(place), "--status"])
        said = capsys.readouterr()
        if asked == kind:
            assert (status, said.err) == (0, "")
            continue
        (line,) = said.err.splitlines()
        assert (status, said.out) == (2, "")
        assert f"{place} is a dataset of {kind}, which {own} makes" in line
        assert line.endswith(f"python {own} --output {place} --status")
