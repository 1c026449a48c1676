"""Prompts: listed by words and lines, encoded as transformers does, refused by line, sampled by launch/sample.py."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from launch import sample
from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig, LatentSpace
from model.network import Latents
from tests.tools.extras import NEEDS_DIFFUSERS, NEEDS_TRANSFORMERS
from tests.trainer.texts.tiny_encoder import LIMIT, WIDTH, expected, save_encoder
from trainer.sampling import generate, sampler
from trainer.sampling.prompts import Prompt, encode_prompts, listed_prompts
from trainer.sampling.sampler import guided
from trainer.texts.encoder import encoder_digest

pytestmark = [NEEDS_TRANSFORMERS, NEEDS_DIFFUSERS]
CPU = torch.device("cpu")
LONG = "cat " * LIMIT


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def dit(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiT with random weights that knows the texts of the encoder."""
    space = LatentSpace(
        structure_shape=(3, 4, 2, 2),
        dynamics_shape=(2, 4, 4),
        text_width=WIDTH,
        text_encoder=encoder_digest(encoder),
        text_max_tokens=LIMIT,
        text_empty_tokens=2,
    )
    torch.manual_seed(0)
    model = DiT(
        DiTConfig(width=24, depth=1, heads=2, condition=Conditioning.text), space, empty_caption=expected(encoder, "")
    )
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("dit")
    model.save_pretrained(folder)
    return folder


def test_prompts_are_those_of_the_words_and_the_lines_each_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa dog\ntwo men\na cat\n", "utf-8")
    found = listed_prompts(["a cat", "a cat", "un v\u00e9lo"], file)
    assert [prompt.text for prompt in found] == ["a cat", "un v\u00e9lo", "a dog", "two men"]
    assert found[-1].place == f"{file} line 2"
    assert listed_prompts([], None) == []
    file.write_bytes("a\u2028cat\r\na\tdog\x0bruns\x0c\n\x85two\rmen".encode())
    texts = [prompt.text for prompt in listed_prompts([], file)]
    assert texts == ["a\u2028cat", "a\tdog\x0bruns\x0c", "\x85two\rmen"], "only line feeds end a line"


def test_embeddings_are_those_of_transformers(dit: Path, encoder: Path) -> None:
    prompts = [Prompt(text, "here") for text in ("a cat", "two men", "the dog runs")]
    found = encode_prompts(DiT.from_pretrained(dit).space, encoder, prompts, CPU)
    assert list(found) == [prompt.text for prompt in prompts]
    for text, tokens in found.items():
        torch.testing.assert_close(tokens, expected(encoder, text), rtol=0, atol=2e-6)


def test_guidance_goes_away_from_the_empty_caption(dit: Path, encoder: Path) -> None:
    """Guidance 0 is what the network says of the empty caption, and each prompt is on its own beside longer ones."""
    model = DiT.from_pretrained(dit)
    noisy = Latents(torch.randn(2, 3, 4, 2, 2), torch.randn(2, 2, 4, 4))
    texts = [expected(encoder, text) for text in ("a cat", "the dog runs, two men")]
    empty = [expected(encoder, "")] * 2
    times = torch.tensor([10.0, 900.0])
    with torch.no_grad():
        none, one, three = (guided(model, [], guidance, texts)(noisy, times) for guidance in (0.0, 1.0, 3.0))
        of_empty = guided(model, [], 1.0, empty)(noisy, times)
        alone = guided(model, [], 1.0, texts[:1])(Latents(*(part[:1] for part in noisy)), times[:1])
    for a, b, c, d, e in zip(none, one, three, of_empty, alone, strict=True):
        torch.testing.assert_close(a, d, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(c, a + 3 * (b - a), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b[:1], e, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(a, b, atol=1e-3)


def words_of(dit: Path, output: Path, *further: str) -> list[str]:
    return ["--model", str(dit), "--output", str(output), "--steps", "2", "--device", "cpu", *further]


def test_samples_of_prompts_keep_their_names_and_say_their_prompts(
    dit: Path, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "samples"
    (tmp_path / "prompts.txt").write_text("two men\na cat\n", "utf-8")
    words = words_of(dit, output, "--encoder", str(encoder))
    assert sample.main([*words, "--prompts", "a cat", "--count", "2"]) == 0
    before = {file.name: file.read_bytes() for file in output.glob("*.safetensors")}
    assert sample.main([*words, "--prompt-file", str(tmp_path / "prompts.txt")]) == 0
    assert "1 new sample of 2" in capsys.readouterr().out
    names = {text: f"prompt-{hashlib.sha256(text.encode()).hexdigest()[:12]}" for text in ("a cat", "two men")}
    files = {f"{names['a cat']}-00000", f"{names['a cat']}-00001", f"{names['two men']}-00000"}
    assert {file.stem for file in output.glob("*.safetensors")} == files
    assert {name: (output / name).read_bytes() for name in before} == before
    settings = json.loads((output / "sampling.json").read_text())
    assert settings["prompts"] == {name: text for text, name in names.items()}
    with safe_open(output / f"{names['a cat']}-00001.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["sample"]) == {"label": "a cat", "number": 1, "autoencoder": ""}
        first = opened.get_tensor("structure")
    with safe_open(output / f"{names['two men']}-00000.safetensors", "pt") as opened:
        assert not torch.allclose(first, opened.get_tensor("structure"), atol=1e-3)


def test_a_folder_lists_all_prompts_also_when_the_command_ended_after_its_first_sample(
    dit: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, calls = tmp_path / "samples", []

    def once(*given: object, **options: object) -> Latents:
        calls.append(given)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return sampler.sample(*given, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(generate, "sample", once)
    words = words_of(dit, output, "--encoder", str(encoder), "--batch", "1", "--prompts", "a cat", "two men")
    assert sample.main(words) == 130
    assert len(list(output.glob("*.safetensors"))) == 1
    prompts = json.loads((output / "sampling.json").read_text())["prompts"]
    assert sorted(prompts.values()) == ["a cat", "two men"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what to make with --prompts or --prompt-file"),
        (["--prompts", "a cat"], "need --encoder, the encoder whose texts --model was trained with"),
        (["--encoder", "ENCODER"], "--encoder is for prompts; name some with --prompts or --prompt-file"),
        (
            ["--encoder", "ENCODER", "--prompts", "a", LONG],
            "--prompts, number 2: the prompt has 18 tokens, and --model",
        ),
        (["--encoder", "ENCODER", "--prompts", "a", " "], "--prompts, number 2: the prompt is empty"),
        (
            ["--encoder", "ENCODER", "--prompt-file", "LONG"],
            "long.txt line 3: the prompt has 18 tokens, and --model reads",
        ),
        (["--encoder", "ENCODER", "--prompt-file", "EMPTY"], "empty.txt is empty; write one prompt in each line"),
        (["--encoder", "ENCODER", "--prompt-file", "GAP"], "gap.txt line 2: the prompt is empty"),
        (["--encoder", "ENCODER", "--prompt-file", "NONE"], "none.txt: no such file"),
        (["--encoder", "ENCODER", "--prompt-file", "NUL"], "nul.txt line 2: the prompt holds a NUL character; remove"),
        (["--encoder", "ENCODER", "--prompts", "a\0"], "argument --prompts: 'a\\x00' holds a NUL byte; remove it"),
        (
            ["--encoder", "ENCODER", "--prompts", "a", os.fsdecode(b"a\xff")],
            "--prompts, number 2: the prompt holds the byte 0xff, which is not UTF-8; write it in UTF-8",
        ),
        (["--encoder", "ENCODER", "--prompt-file", "ENCODER"], "is a folder; name a text file"),
        (["--encoder", "OTHER", "--prompts", "a"], "and --model was trained with texts of"),
        (["--encoder", "NOTHING", "--prompts", "a"], "no config.json there"),
        (["--encoder", "ENCODER", "--prompts", "a", "--classes", "b"], "--classes b: --model is a DiT without classes"),
    ],
)
def test_refused_in_one_line_before_anything_is_written(
    dit: Path,
    encoder: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    files = {"LONG": f"a\nb\n{LONG}\n", "EMPTY": "", "GAP": "a\n\nb\n", "NUL": "a\nb\0\n", "NONE": None}
    places = {name: tmp_path / f"{name.lower()}.txt" for name in files} | {"ENCODER": encoder}
    for name, text in files.items():
        if text is not None:
            places[name].write_text(text)
    if "OTHER" in words:
        places["OTHER"] = save_encoder(tmp_path / "other", seed=1)
    places["NOTHING"] = tmp_path / "nothing"
    capsys.readouterr()
    assert sample.main(words_of(dit, tmp_path / "out", *(str(places.get(word, word)) for word in words))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("launch/sample.py: ")
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_dit_of_classes_takes_no_prompts(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = LatentSpace(structure_shape=(3, 4, 2, 2), dynamics_shape=(2, 4, 4), classes=("a",))
    config = DiTConfig(width=24, depth=1, heads=2, condition=Conditioning.class_)
    DiT(config, space).save_pretrained(tmp_path / "dit")
    words = words_of(tmp_path / "dit", tmp_path / "out", "--prompts", "a", "--encoder", str(encoder))
    assert sample.main(words) == 2
    assert "dit.condition=class, which knows no captions; leave --prompts" in capsys.readouterr().err
