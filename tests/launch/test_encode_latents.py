"""`launch/encode_latents.py` and the checks of its result, as a user runs them, on real clips."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from data_pipeline.build.ray_cluster import start_local_cluster
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.store.local import LocalStore
from launch import drop_duplicates, encode_latents, report_shards, verify_shards
from launch import take_down as take_down_script
from tests.trainer.latents.corpus import build_clips, save_model


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    start_local_cluster(1)  # each run starts as many actors as there are cores, and each imports torch
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `model`, `shards`, and the `latents` that the script made of them."""
    folder = tmp_path_factory.mktemp("corpus")
    save_model(folder / "model")
    build_clips(folder)
    assert encode_latents.main(words(folder)) == 0
    return folder


def words(folder: Path, *further: str) -> list[str]:
    named = {name: str(folder / name) for name in ("model", "shards")} | {"output": str(folder / "latents")}
    return [*(part for name, place in named.items() for part in (f"--{name}", place)), *further]


def test_the_account_the_status_and_the_proof(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode_latents.main(words(folder)) == 0
    said = capsys.readouterr().out
    clips = next(line.split()[-1] for line in said.splitlines() if line.startswith("source clips"))
    assert f"resuming: {clips} clips in 3 units, 3 already committed" in said
    assert encode_latents.main(["--status", "--output", str(folder / "latents")]) == 0
    assert f"3 of 3 units committed (100.0 %) of {clips} clips; complete" in capsys.readouterr().out
    check = ["--shards", str(folder / "latents"), "--source", str(folder / "shards")]
    assert verify_shards.main(check) == 0
    assert "proven: 3 units, 3 shards" in capsys.readouterr().out


def test_a_takedown_is_named_by_the_proof_and_followed_by_the_same_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    take_down(Dataset.open(LocalStore(folder / "shards")), {"phone"})
    check = ["--shards", str(folder / "latents"), "--source", str(folder / "shards")]
    assert verify_shards.main(check) == 1
    assert "unit 2: the clip is no longer there: phone-" in capsys.readouterr().err
    assert encode_latents.main(words(folder)) == 0
    said = capsys.readouterr().out
    assert "the clips have changed: " in said
    assert "taken_down" in said
    assert verify_shards.main(check) == 0


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            ["stored.dtype=bf16"],
            "planned with other settings (stored.dtype: fp16 -> bf16); use the old ones, or",
        ),
        (["windows.every=3"], "windows.every=3 with windows.choose=all: set windows.every with windows.choose=stride"),
        (["windows.chose=all"], "unknown key 'windows.chose'; did you mean 'windows.choose'?"),
        (["run.device=cuda"], "run.device=cuda needs run.unit_gpus above 0"),
        (["run.unit_gpus=5"], ""),
    ],
)
def test_wrong_words_end_with_2_in_one_line(
    folder: Path, further: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not message:  # everything is committed, so nothing asks Ray for the GPUs
        assert encode_latents.main(words(folder, *further)) == 0
        return
    assert encode_latents.main(words(folder, *further)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/encode_latents.py: ")
    assert message in line


def test_an_output_that_is_an_input_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("shards", "model"):
        named = words(folder)
        named[-1] = str(folder / name)
        assert encode_latents.main(named) == 2
        assert "is the same folder as" in capsys.readouterr().err


def test_scripts_for_clips_refuse_latents(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids").write_text("bikes\n")
    latents = str(folder / "latents")
    assert take_down_script.main(["--shards", latents, "--ids", str(tmp_path / "ids")]) == 2
    assert drop_duplicates.main(["--shards", latents]) == 2
    assert report_shards.main(["--shards", latents, "--output", str(tmp_path / "page.html")]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert "is a dataset of latents; name one of clips, as launch/build_shards.py makes it" in line
