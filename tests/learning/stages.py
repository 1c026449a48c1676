"""The commands that a user would type, from six classes of clips to samples of each class."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.learning.clips import SHOTS, write_manifest

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
LIMIT_S = 2400
"""Seconds that one command has; some twenty times what it takes, because ten times is not enough on a busy machine."""
SAMPLES = 10
"""Of each of the six classes."""


class Stages:
    """Runs the commands in a folder. A command whose result is there is not run again.

    Args:
        folder: of all results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self) -> Path:
        """The autoencoder."""
        output = self.folder / "autoencoder"
        words = ["--config", str(HERE / "train.yaml"), f"output={output}", f"data.shards={self.shards(False)}"]
        return self._made(output / "model", "launch/train.py", *words)

    def shards(self, shuffled: bool) -> Path:
        """The clips."""
        manifest, output = (self.folder / f"{kind}{_mark(shuffled)}" for kind in ("manifest", "shards"))
        manifest = manifest.with_suffix(".csv")
        write_manifest(manifest, shuffled=shuffled)
        words = ["--config", str(HERE / "shards.yaml"), "--source", str(manifest), "--output", str(output)]
        return self._made(output, "launch/build_shards.py", *words, result="dataset.json")

    def latents(self, shuffled: bool) -> Path:
        """All windows of 8 frames, each with its mirror image."""
        output = self.folder / f"latents{_mark(shuffled)}"
        words = ["--model", str(self.model()), "--shards", str(self.shards(shuffled)), "--output", str(output)]
        words += ["windows.choose=stride", "windows.every=1", "windows.mirrored=true"]
        return self._made(output, "launch/encode_latents.py", *words, result="dataset.json")

    def dit(self, shuffled: bool) -> Path:
        """The moving average of the DiT."""
        output = self.folder / f"dit{_mark(shuffled)}"
        words = ["--config", str(HERE / "diffusion.yaml"), f"output={output}", f"data.shards={self.latents(shuffled)}"]
        return self._made(output / "model_ema", "launch/train_diffusion.py", *words)

    def samples(self, shuffled: bool, guidance: float) -> Path:
        """`SAMPLES` of each class."""
        output = self.folder / f"samples{_mark(shuffled)}-{guidance:g}"
        words = ["--model", str(self.dit(shuffled)), "--output", str(output), "--count", str(SAMPLES)]
        words += ["--guidance", str(guidance), "--steps", "50", "--batch", "20", "--device", "cpu"]
        last = f"class{len(SHOTS) - 1:04d}-{SAMPLES - 1:05d}.safetensors"
        return self._made(output, "launch/sample.py", *words, result=last)

    def _made(self, place: Path, script: str, *words: str, result: str = "") -> Path:
        if not (place / result).exists():
            begin = time.monotonic()
            variables = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # two commands on two cores
            try:
                done = subprocess.run(
                    [sys.executable, str(ROOT / script), *words],
                    cwd=ROOT,
                    env=variables,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    timeout=LIMIT_S,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise RuntimeError(
                    f"{script} did not end within {LIMIT_S} s; with --output, the same command goes on"
                ) from error
            if done.returncode or not (place / result).exists():
                raise RuntimeError(f"{script} {' '.join(words)} ended with {done.returncode}:\n{done.stdout[-3000:]}")
            print(f"{time.monotonic() - begin:5.0f} s  {script} -> {place.name}", flush=True)
        return place


def _mark(shuffled: bool) -> str:
    return "-shuffled" if shuffled else ""
