"""No folder of results lies in a dataset, a model or an encoder that a script reads, or around one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launch import decode_latents, encode_latents, encode_text, evaluate_generation, sample

MEASURED = ["--samples", "x", "--shards", "s", "--decoder", "d", "--extractor", "f"]
INSIDE_AND_AROUND = [
    (encode_text.main, ["--encoder", "{place}", "--latents", "l", "--output"], "encoder"),
    (encode_text.main, ["--encoder", "e", "--latents", "{place}", "--output"], "latents"),
    (encode_latents.main, ["--model", "{place}", "--shards", "s", "--output"], "model"),
    (encode_latents.main, ["--model", "m", "--shards", "{place}", "--output"], "shards"),
    (decode_latents.main, ["--model", "{place}", "--latents", "l", "--output"], "--model"),
    (sample.main, ["--model", "{place}", "--output"], "--model"),
    (sample.main, ["--model", "m", "--encoder", "{place}", "--prompts", "p", "--output"], "--encoder"),
    (evaluate_generation.main, [*MEASURED, "--latents", "{place}", "--output"], "--latents"),
]


@pytest.mark.parametrize(("main", "words", "option"), INSIDE_AND_AROUND)
def test_no_folder_of_results_lies_in_a_model_an_encoder_or_a_dataset_or_around_one(
    main: Callable[[list[str]], int],
    words: list[str],
    option: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = tmp_path / "around" / "read"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    filled = [word.format(place=place) for word in words]
    for output, told in (
        (place / "new", "lies in"),
        (tmp_path / "link" / "new", "lies in"),
        (place.parent, "contains"),
    ):
        assert main([*filled, str(output)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{output} {told} {option} {place}; name a folder" in line
    assert sorted(tmp_path.rglob("*")) == [place.parent, place, tmp_path / "link"]


@pytest.mark.parametrize("output", ["s3://b/read/new", "s3://b/read", "s3://b"])
def test_datasets_on_a_store_do_not_lie_in_each_other_either(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert encode_text.main(["--encoder", "e", "--latents", "s3://b/read/", "--output", output]) == 2
    assert ("contains" if output == "s3://b" else "lies in") in capsys.readouterr().err
