"""From the demo's shards and its model to generated clips: encode, train a diffusion model, sample, decode, a page."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import mean

from data_pipeline.dataset.description import read_dataset
from data_pipeline.store.files import atomic_file
from data_pipeline.store.open import open_store
from launch.demo import findings
from launch.demo.commands import Commands
from launch.demo.findings import Verdict
from launch.demo.generated_page import Results, render
from launch.demo.run import LATENTS_CONFIG, ROOT, Folder, folder_of, two_ranks
from launch.demo.source import fingerprint

DIFFUSION_CONFIG = ROOT / "configs" / "diffusion" / "demo.yaml"
WINDOWS = ("windows.choose=stride", "windows.every=1")
"""A few seconds of video must give many windows, and those of the demo lie side by side. There are no mirror images,
because the demo's autoencoder has not seen any."""
SAMPLES = 12
"""Clips that are made, as evenly of all classes as that goes; at least two of each."""
GUIDANCE = 2.0
NEAR_DB = 3.0
"""How much farther a generated clip may be from the nearest training clip than that clip's reconstruction is, in dB."""


def generate(output: Path, source: Path | None, overrides: list[str], steps: int | None) -> int:
    """Run what is not done yet behind a finished demo, write the page, and compare the result with what is expected.

    Args:
        output, source, overrides: of the demo (see `launch.demo.run.demo`).
        steps: of the diffusion's training; None: those of configs/diffusion/demo.yaml.
    Returns:
        Exit status: 0, or 1 when the default clips missed an expectation.
    Raises:
        CommandFailed: a command failed.
        KeyboardInterrupt: Ctrl-C; nothing that the demo started is left running.
    """
    began = time.monotonic()
    folder = folder_of(output, source, overrides)
    decides = " ".join([*WINDOWS, str(SAMPLES), str(GUIDANCE), str(steps)])
    target = folder.path / f"generated-{fingerprint(None, decides, [DIFFUSION_CONFIG])}"
    target.mkdir(exist_ok=True)
    commands = Commands(target, ROOT)
    encode(commands, folder, target)
    classes = classes_of(target / "latents")
    train(commands, target, classes, steps)
    sample(commands, folder, target, classes)
    print("\n== page", flush=True)
    results = measure(folder, target, commands, default_source=source is None)
    page = render(results)
    for file in (target / "generated.html", output.absolute() / "generated.html"):
        with atomic_file(file) as temporary:
            temporary.write_text(page, "utf-8")
    print(f"{'':<62}{'found':<32}expected of the default clips")
    for verdict in results.verdicts:
        mark = "" if verdict.met or source is not None else "   <-- MISSED"
        print(f"{verdict.what:<62}{verdict.result:<32}{verdict.expected}{mark}")
    print(f"\npage      {output.absolute() / 'generated.html'}  ({len(page) / 1e6:.1f} MB, opens in any browser)")
    print(f"finished in {time.monotonic() - began:.0f} s; the stages took {results.seconds:.0f} s", flush=True)
    return 1 if source is None and not all(verdict.met for verdict in results.verdicts) else 0


def encode(commands: Commands, folder: Folder, target: Path) -> None:
    """Encode all windows, which overlap, with the demo's model."""
    latents = target / "latents"
    command = [sys.executable, str(ROOT / "launch/encode_latents.py"), "--config", str(LATENTS_CONFIG), *WINDOWS,
               "--model", str(folder.model), "--shards", str(folder.shards), "--output", str(latents)]  # fmt: skip
    commands.run("clips to overlapping latents", command, latents / "dataset.json")


def train(commands: Commands, target: Path, classes: list[str], steps: int | None) -> None:
    """Train a DiT on two CPU ranks, with the classes where the clips have labels."""
    words = [f"output={target / 'dit'}", f"data.shards={target / 'latents'}"]
    words += [] if classes else ["dit.condition=none"]
    words += [] if steps is None else [f"steps={steps}", f"optim.dit.warmup={min(50, steps - 1)}"]
    command = [*two_ranks(), str(ROOT / "launch/train_diffusion.py"), "--config", str(DIFFUSION_CONFIG), *words]
    result = target / "dit" / "model_ema" / "model.safetensors"
    commands.run("diffusion on two ranks", command, result, environment={"DS_ACCELERATOR": "cpu"})


def sample(commands: Commands, folder: Folder, target: Path, classes: list[str]) -> None:
    """Make clips with the DiT, and decode them."""
    samples, rate = target / "samples", read_dataset(open_store(str(folder.shards))).fps
    chosen = ["--classes", *classes[:SAMPLES], "--guidance", str(GUIDANCE)] if classes else []
    count = max(2, SAMPLES // max(1, len(classes))) if classes else SAMPLES
    command = [sys.executable, str(ROOT / "launch/sample.py"), "--model", str(target / "dit" / "model_ema"), *chosen,
               "--output", str(samples), "--count", str(count), "--batch", "4",
               "--decoder", str(folder.model), "--fps", f"{float(rate):g}"]  # fmt: skip
    commands.run("new clips", command, samples / "index.html")


def measure(folder: Folder, target: Path, commands: Commands, *, default_source: bool) -> Results:
    """Read the clips back and compare them with the training clips."""
    import torch  # late like the imports below, because only the page needs them

    from launch.demo.nearest import find_nearest
    from model.dit import DiT
    from trainer.evaluation.run import load_model
    from trainer.latents.sample_metadata import read_sample_metadata

    model = load_model(folder.model, torch.device("cpu"))
    files = sorted((target / "samples").glob("*.safetensors"))
    samples = [(read_sample_metadata(file).label, file) for file in files]
    rate = read_dataset(open_store(str(folder.shards))).fps
    found = find_nearest(model, samples, target / "latents", folder.shards, rate)
    worse = mean([item.reconstruction - item.psnr for item in found])
    verdicts = [
        Verdict(
            "generated clips: decibels below the nearest one rebuilt",
            f"{worse:.1f} dB",
            f"at most {NEAR_DB:g} dB",
            worse <= NEAR_DB,
        )
    ]
    classed = [item for item in found if item.asked]
    if classed:
        right = sum(item.asked == item.label for item in classed)
        verdicts.append(
            Verdict("the nearest clip is of the video that was asked for", f"{right} of {len(classed)}", "9 in 10",
                    right >= 0.9 * len(classed))
        )  # fmt: skip
    return Results(
        found=found,
        verdicts=verdicts,
        training=findings.training_rows(target / "dit"),
        default_source=default_source,
        parameters=sum(weight.numel() for weight in DiT.from_pretrained(target / "dit" / "model_ema").parameters()),
        fps=float(rate),
        records=commands.records,
    )


def classes_of(latents: Path) -> list[str]:
    """The labels of the training windows in the order of their letters; none where a window has no label."""
    from data_pipeline.read.latent_dataset import LatentDataset  # late, because only a finished encoding is read

    dataset = LatentDataset(str(latents), "train")
    labels = {item["label"] for item in dataset.__getitems__(range(len(dataset)))}
    return [] if "" in labels else sorted(labels)
