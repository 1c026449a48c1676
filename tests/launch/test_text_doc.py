"""docs/texts.md: its commands run as they are written, the training on two ranks, which then goes on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model.dit import DiT
from tests.launch.two_ranks import ROOT, ended, environment, rows_of
from tests.tools.extras import NEEDS_DIFFUSERS, NEEDS_TRANSFORMERS
from tests.tools.ports import free_port
from tests.trainer.texts.corpus import config_of, encode_here, save_latents
from tests.trainer.texts.tiny_encoder import LIMIT, WIDTH, expected, save_encoder
from trainer.texts.encoder import encoder_digest

pytestmark = [pytest.mark.slow, NEEDS_TRANSFORMERS, NEEDS_DIFFUSERS]
TEXT = (ROOT / "docs" / "texts.md").read_text()
SMALL = (
    *("dit.width=24", "dit.depth=1", "dit.heads=2", "data.global_batch=4", "data.workers=1", "precision=fp32"),
    *("steps=8", "optim.dit.warmup=1", "checkpoint.every=4", "telemetry.log_every=1", "ema.decay=0.5"),
    *("validation.every=4", "validation.clips=3", "validation.times=2"),
)
"""What makes the training of the text small enough for a processor."""
PLACES = ("minilm", "data/latents", "data/texts", "runs/text", "runs/text/model_ema", "samples", "prompts.txt")
TERMS = ("step", "total_loss", "loss_structure", "loss_dynamics", "grad_norm_dit")


def commands() -> list[list[str]]:
    """The words of every command of the section but that of pip."""
    (block,) = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    lines = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    return [words for words in lines if words[0] != "pip"]


def placed(folder: Path, word: str) -> str:
    """A word whose place, if it has one, is below the folder."""
    key, sign, value = word.rpartition("=")
    return f"{key}{sign}{folder / value}" if value in PLACES else word


def run(folder: Path, words: list[str], *further: str) -> tuple[int, str]:
    """Status and output of a command of the text in the project's folder, with its places below `folder`."""
    words = [*(placed(folder, word) for word in words), *further]
    if words[0] == "python":
        words[0] = sys.executable
    else:
        words[:1] = [
            str(Path(sys.executable).parent / "deepspeed"),
            "--num_gpus",
            "2",
            "--master_port",
            str(free_port()),
        ]
    process = subprocess.Popen(
        words,
        cwd=ROOT,
        env=os.environ | environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    said = ended(process)
    return process.returncode, said


def test_the_commands_work_as_they_are_written_and_the_training_goes_on(tmp_path: Path) -> None:
    encoder = save_encoder(tmp_path / "minilm")
    save_latents(tmp_path / "data" / "latents")
    (tmp_path / "prompts.txt").write_text("a dog\nthe dog runs\n")
    encode, verify, train, *samples = commands()
    assert len(samples) == 2
    for words, further in ((encode, ("unit_captions=4", "run.cpus=1")), (verify, ()), (train, SMALL)):
        status, said = run(tmp_path, words, *further)
        assert status == 0, said[-3000:]
    for words in samples:
        status, said = run(tmp_path, words, "--steps", "2", "--device", "cpu")
        assert status == 0, said[-3000:]
    prompts = json.loads((tmp_path / "samples" / "sampling.json").read_text())["prompts"]
    assert sorted(prompts.values()) == ["a cat runs", "a dog", "the dog runs", "two men"]
    assert len(list((tmp_path / "samples").glob("*.safetensors"))) == 2 + 2 * 4
    output = tmp_path / "runs" / "text"
    dit = DiT.from_pretrained(output / "model_ema")
    space = dit.space
    assert (space.text_encoder, space.text_width, space.text_max_tokens) == (encoder_digest(encoder), WIDTH, LIMIT)
    stored = dit.context.get_buffer("empty")  # type: ignore[union-attr]
    assert (stored - expected(encoder, "")).abs().max() < 2e-3, "fp16 is stored"
    rows = rows_of(output, TERMS)
    assert [row["step"] for row in rows] == list(range(1, 9))

    shutil.rmtree(output / "model")
    status, said = run(tmp_path, train, *SMALL, "checkpoint.resume=4")
    assert status == 0, said[-3000:]
    assert rows_of(output, TERMS)[-4:] == rows[4:], "a run that goes on has the same captions, times and noise"

    other = tmp_path / "other"
    encode_here(config_of(save_encoder(tmp_path / "another", seed=1), tmp_path / "data" / "latents", other))
    shutil.rmtree(output / "model")
    status, said = run(tmp_path, train, *SMALL, "steps=9", f"data.text={other}")
    assert status != 0
    assert "the texts of the checkpoint's run are of the encoder" in said
