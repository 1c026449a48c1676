"""A training as users start it, stopped by a signal and started again; and the loader's page-locked batches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from data_pipeline.read.config import DataConfig
from data_pipeline.read.loader import ClipLoader
from model.vidtwin import VidTwin
from tests.gpu.findings import Context, held, holds, measured
from tests.gpu.made_up_clips import write_waves
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml

ROOT = Path(__file__).parents[2]
STEPS, STOP_AT = 60, 6
WORDS = (
    *(f"steps={STEPS}", "gan.start=4", "gan.warmup=1", "gan.ramp=2", "data.workers=2", "zero.stage=1", "ema.decay=0.9"),
    *("checkpoint.every=20", "validation.every=30", "validation.clips=4", "telemetry.log_every=1"),
    *("telemetry.samples_every=30", "validation.ema=true"),
)


def run(context: Context) -> None:
    data = write_waves(context.folder / "data")
    pinned_batches(context, data)
    settings = write_settings(context, data)
    straight, stopped = context.folder / "straight", context.folder / "stopped"
    seconds = train(context, settings, straight)
    measured("a whole training", seconds, "s")
    train(context, settings, stopped, stop=True)
    done = rows(stopped)[-1]["step"]
    holds("stopped by SIGUSR1", STOP_AT <= done < STEPS, f"after step {done}", "a checkpoint before the end")
    train(context, settings, stopped)
    compare(context, straight, stopped)


def write_settings(context: Context, data: Path) -> Path:
    precision = "bf16" if context.on_gpu else "fp32"
    config = tiny_config("unused", f"data.shards={data}", f"precision={precision}", *WORDS)
    config.output = "???"
    file = context.folder / "settings.yaml"
    file.write_text(to_yaml(config))
    return file


def train(context: Context, settings: Path, output: Path, stop: bool = False) -> float:
    """Run launch/train.py to its end, or until it has stopped for a signal; seconds."""
    begin = time.monotonic()
    command = [sys.executable, "launch/train.py", "--config", str(settings), f"output={output}"]
    log = context.results / f"training_{output.name}.log"
    with log.open("a") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        if stop:
            while process.poll() is None and not any(row["step"] >= STOP_AT for row in rows(output)):
                time.sleep(0.02)
                if time.monotonic() - begin > 300:
                    process.kill()
                    raise TimeoutError(f"{output} made no step {STOP_AT} in 300 seconds; see {log}")
            process.send_signal(signal.SIGUSR1)
        status = process.wait(300)
    if status:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"launch/train.py ended with status {status}:\n{tail}")
    return time.monotonic() - begin


def rows(output: Path) -> list[dict[str, Any]]:
    """The steps that a run has logged."""
    file = output / "metrics.jsonl"
    lines = [line for line in file.read_text().splitlines() if line.endswith("}")] if file.is_file() else []
    return [row for row in map(json.loads, lines) if "total_loss" in row]


def compare(context: Context, straight: Path, stopped: Path) -> None:
    """The run that was stopped and resumed against the one that was not.

    On a GPU some kernels add in another order each time. Adam makes of that, at a learning rate of 1e-3 and in 60
    steps, at most 0.06 of a weight.
    """
    for output in (straight, stopped):
        last = rows(output)[-1]["step"]
        holds(f"{output.name}: last step", last == STEPS, str(last), str(STEPS))
        validated = any("psnr" in line for line in (output / "metrics.jsonl").read_text().splitlines())
        holds(f"{output.name}: validation", validated, str(validated), "psnr in metrics.jsonl")
    for folder in ("model", "model_ema"):
        one, other = (VidTwin.from_pretrained(output / folder).state_dict() for output in (straight, stopped))
        apart = max(float((one[name] - other[name]).abs().max()) for name in one)
        allowed = 0.02 if context.on_gpu else 0.0
        held(f"{folder}: largest difference of a weight", apart, allowed, "the run that was not stopped")
    apart = max(abs(a["l1"] - b["l1"]) for a, b in zip(rows(straight), rows(stopped), strict=False))
    held("l1 of every step", apart, 0.02 if context.on_gpu else 0.0, "the run that was not stopped")
    same = [row["step"] for row in rows(stopped)] == list(range(1, STEPS + 1))
    holds("every step once", same, str(same), "metrics.jsonl")


def pinned_batches(context: Context, data: Path) -> None:
    """Workers that are forked after CUDA was used, and what the loader hands over."""
    if context.on_gpu:
        torch.zeros(1, device="cuda").add_(1).item()
    settings = {"shards": str(data), "frames": 8, "image_size": 32, "global_batch": 4, "seed": 3}
    plain = ClipLoader(DataConfig(**settings, workers=0))
    pinned = ClipLoader(DataConfig(**settings, workers=2), pin_memory=context.on_gpu)
    expected = [batch.video for batch in islice(plain.from_position(), 6)]
    batches = [batch.video for batch in islice(pinned.from_position(), 6)]
    same = all(torch.equal(a, b) for a, b in zip(expected, batches, strict=True))
    holds("batches of workers", same, str(same), "a loader without workers")
    if context.on_gpu:
        locked = all(video.is_pinned() for video in batches)
        holds("page-locked", locked, str(locked), "is_pinned")
        parts = all(part.is_pinned() for video in batches for part in video.split(2))
        holds("their micro-batches are, too", parts, str(parts), "is_pinned")
        there = all(torch.equal(video.to("cuda", non_blocking=True).cpu(), video) for video in batches)
        holds("copied to the device without waiting", there, str(there), "the host's values")
    pinned.close()
    plain.close()
    measured("cores", float(len(os.sched_getaffinity(0))))
