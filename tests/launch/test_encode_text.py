"""`launch/encode_text.py` and the proof of its result, as a user runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from data_pipeline.build.ray_cluster import start_local_cluster
from launch import encode_text, verify_shards
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.texts.corpus import CLIPS, NEW, config_of, distinct, encode_here, save_latents
from tests.trainer.texts.tiny_encoder import save_encoder

pytestmark = NEEDS_TRANSFORMERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `encoder`, `latents`, and the `texts` made of them in this process."""
    folder = tmp_path_factory.mktemp("corpus")
    save_encoder(folder / "encoder")
    save_latents(folder / "latents")
    encode_here(config_of(folder / "encoder", folder / "latents", folder / "texts", "stored.dtype=fp32"))
    return folder


def words(folder: Path, *further: str, output: str = "texts") -> list[str]:
    named = {name: str(folder / name) for name in ("encoder", "latents")} | {"output": str(folder / output)}
    return [
        *(part for name, place in named.items() for part in (f"--{name}", place)),
        "unit_captions=4",
        "run.in_flight=1",
        *further,
    ]


def test_the_account_the_status_and_the_proof(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count = len(distinct(CLIPS))
    assert encode_text.main(words(folder, "stored.dtype=fp32")) == 0
    said = capsys.readouterr().out
    assert f"resuming: {count} captions in 4 units, 4 already committed" in said
    assert f"texts            {count}" in said
    assert "cut       1 caption to 16 tokens (text.max_tokens)" in said
    assert encode_text.main(["--status", "--output", str(folder / "texts")]) == 0
    assert f"4 of 4 units committed (100.0 %) of {count} captions; complete" in capsys.readouterr().out
    check = ["--shards", str(folder / "texts"), "--source", str(folder / "latents")]
    assert verify_shards.main(check) == 0
    assert "proven: 4 units, 4 shards" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_gives_on_ray_the_bytes_of_one_process(folder: Path, request: pytest.FixtureRequest) -> None:
    """The quick run has the same script for latents, in test_encode_latents.py."""
    start_local_cluster(1)  # each run starts as many actors as there are cores, and each imports torch
    request.addfinalizer(ray.shutdown)
    assert encode_text.main(words(folder, "stored.dtype=fp32", output="there")) == 0
    here, there = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (folder / "texts", folder / "there")
    )
    assert here == there


def test_the_proof_names_captions_without_an_embedding(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    latents = save_latents(tmp_path / "latents", [*CLIPS, *NEW])
    assert verify_shards.main(["--shards", str(folder / "texts"), "--source", str(latents)]) == 1
    said = capsys.readouterr().err
    assert "1 captions of the latents have no embedding (first: 'a caption that is new')" in said
    assert "run launch/encode_text.py again" in said


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (
            ["stored.dtype=bf16"],
            "planned with other settings (stored.dtype: fp32 -> bf16); use the old ones, or another output",
        ),
        (["text.max_tokens=17"], "text.max_tokens=17: this encoder takes at most 16 tokens"),
        (["text.tokens=3"], "unknown key 'text.tokens'; did you mean 'text.max_tokens'?"),
        (["run.device=cuda"], "run.device=cuda needs run.unit_gpus above 0"),
        (["unit_captions=0"], "unit_captions=0 must be at least 1"),
        (["stored.dtype=int8"], "stored.dtype"),
    ],
)
def test_wrong_words_end_with_2_in_one_line(
    folder: Path, further: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert encode_text.main(words(folder, *further)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/encode_text.py: ")
    assert message in line


@pytest.mark.parametrize("name", ["encoder", "latents"])
def test_an_output_that_is_an_input_is_refused(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode_text.main(words(folder, output=name)) == 2
    assert "is the same folder as" in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_remedy(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encode_text, "find_spec", lambda name: None)
    assert encode_text.main(words(folder)) == 2
    assert "transformers, which is missing: pip install -e '.[text]'" in capsys.readouterr().err


def test_status_needs_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert encode_text.main(["--status"]) == 2
    assert "--status needs --output" in capsys.readouterr().err
