"""Samples as files: one .safetensors of latents each, which `launch/decode_latents.py` decodes; what exists is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from data_pipeline.store.files import atomic_file
from model.dit import DiT
from model.dit_config import Conditioning
from model.network import Latents
from trainer.sampling.sampler import guided, sample, scheduler_of, seeds_of
from trainer.team import ALONE, Team

SETTINGS_FILE = "sampling.json"
METADATA_KEY = "sample"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What decides the values of the samples."""

    weights: str  # SHA-256 of the DiT's file of weights
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class Wanted:
    """One sample.

    Attributes:
        label: its class, or its prompt; empty without a condition.
        number: among the samples of its class or prompt.
        name: of its file, without the ending.
        text: token embeddings of its prompt, float32 [L, text width]; None without a prompt.
    """

    label: str
    number: int
    name: str
    text: Tensor | None = field(default=None, repr=False, compare=False)


def wanted_samples(dit: DiT, classes: Sequence[str], count: int) -> list[Wanted]:
    """`count` samples of each class.

    Args:
        classes: none = all that the DiT knows.
    Raises:
        ValueError: a class that the DiT does not know, or a DiT that is told of captions.
    """
    if dit.config.condition is Conditioning.text:
        raise ValueError("--model is a DiT with dit.condition=text; name what to make with --prompts or --prompt-file")
    if dit.config.condition is Conditioning.none:
        if classes:
            raise ValueError(f"--classes {classes[0]}: --model is a DiT without classes; leave --classes away")
        return [Wanted("", number, f"sample-{number:05d}") for number in range(count)]
    chosen = list(dict.fromkeys(classes)) or list(dit.space.classes)
    places = zip(chosen, dit.class_numbers(chosen), strict=True)
    return [
        Wanted(label, number, f"class{place:04d}-{number:05d}") for label, place in places for number in range(count)
    ]


def check_settings(file: Path, now: Mapping[str, Any], what: str) -> None:
    """Write settings into a file beside what was made with them, or refuse a folder where others stand.

    Args:
        now: the settings, as JSON keeps them.
        what: was made with them, for messages.
    Raises:
        ValueError: naming the setting.
    """
    refuse_other(file, now, what)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(now, indent=1) + "\n", "utf-8")


def refuse_other(file: Path, now: Mapping[str, Any], what: str) -> None:
    """The second half of `check_settings`, which writes nothing."""
    if file.exists():
        remedy = f"remove {file.parent} and make the {what} again, or choose another --output"
        try:
            then = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not a JSON file in UTF-8: {error}; {remedy}") from error
        if not isinstance(then, dict):
            raise ValueError(f"{file} must be keys with values; {remedy}")
        differ = [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
        if differ:
            raise ValueError(
                f"--output {file.parent} holds {what} of other settings ({'; '.join(differ)}); choose another"
            )


def generate(
    dit: DiT,
    sampling: Sampling,
    wanted: Sequence[Wanted],
    output: Path,
    *,
    batch: int,
    progress: Callable[[int], None] | None = None,
    team: Team = ALONE,
) -> int:
    """Make the samples that `output` does not hold yet, and return their number; every rank of the team calls it.

    Args:
        dit: in evaluation mode, the same on every rank.
        batch: samples that a rank makes together, which does not change them beyond rounding.
        progress: called on the main rank with the number of samples made.
        team: the processes that divide the samples among themselves, which does not change these either.
    Raises:
        ValueError: `output` holds samples of other settings, the steps do not fit the DiT, or it makes numbers that are
            not finite.
        StoreError: the disk is full.
    """
    scheduler_of(dit.process, dit.space.values, sampling.steps)  # refuses before the folder is written

    def look() -> list[Wanted]:
        missing = [item for item in wanted if not (output / f"{item.name}.safetensors").exists()]
        if len(missing) < len(wanted) and not (output / SETTINGS_FILE).exists():
            raise ValueError(
                f"--output {output} holds samples and no {SETTINGS_FILE}, which says how they were made; choose another"
            )
        check_settings(output / SETTINGS_FILE, asdict(sampling), "samples")
        return missing

    def make(some: Sequence[Wanted]) -> None:
        _make(dit, sampling, some, output)

    missing = team.of_main(look)
    team.work(missing, batch, make, progress)
    return len(missing)


def _make(dit: DiT, sampling: Sampling, some: Sequence[Wanted], output: Path) -> None:
    device = dit.last.structure.weight.device
    seeds = [seeds_of(sampling.seed, item.label, [item.number])[0] for item in some]
    texts = [item.text for item in some if item.text is not None]
    predict = guided(dit, [item.label for item in some if item.label], sampling.guidance, texts)
    made = sample(predict, dit.space, dit.process, seeds, steps=sampling.steps, device=device)
    with torch.no_grad():
        latents = dit.normaliser.denormalise(made)
    for place, item in enumerate(some):
        _write(output / f"{item.name}.safetensors", Latents(*(values[place] for values in latents)), item)


def _write(file: Path, latents: Latents, item: Wanted) -> None:
    tensors = {name: values.cpu().contiguous() for name, values in latents._asdict().items()}
    metadata = {METADATA_KEY: json.dumps({"label": item.label, "number": item.number})}
    if not all(bool(torch.isfinite(values).all()) for values in tensors.values()):
        raise ValueError(
            f"--model makes numbers that are not finite (the sample {file.stem}), so its training has failed; name "
            "weights of an earlier checkpoint"
        )
    with atomic_file(file) as temporary:
        temporary.write_bytes(save(tensors, metadata))  # `save_file` makes files that their owner alone may read


def label_of(file: Path) -> str:
    """The class of a sample, as its file says; empty without classes."""
    with safe_open(file, "pt") as opened:
        return str(json.loads(opened.metadata()[METADATA_KEY])["label"])
