"""Samples as files: one .safetensors of latents each, which `launch/decode_latents.py` decodes; what exists is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.store.files import atomic_file
from model.dit import DiT
from model.dit_config import Conditioning
from model.network import Latents
from trainer.sampling.sampler import guided, sample, scheduler_of, seeds_of

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


def check_settings(output: Path, sampling: Sampling) -> None:
    """Write the settings beside the samples, or refuse a folder of samples with other ones.

    Raises:
        ValueError: naming the setting.
    """
    file = output / SETTINGS_FILE
    now = asdict(sampling)
    if file.exists():
        then = json.loads(file.read_text("utf-8"))
        differ = [f"{key}: {then.get(key)} -> {now[key]}" for key in now if then.get(key) != now[key]]
        if differ:
            raise ValueError(f"--output {output} holds samples of other settings ({'; '.join(differ)}); choose another")
        return
    output.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(now, indent=1) + "\n", "utf-8")


def generate(
    dit: DiT,
    sampling: Sampling,
    wanted: Sequence[Wanted],
    output: Path,
    *,
    batch: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Make the samples that `output` does not hold yet, and return their number.

    Args:
        dit: in evaluation mode.
        batch: samples made together, which does not change them beyond rounding.
        progress: called with the number of samples made.
    Raises:
        ValueError: `output` holds samples of other settings, or the steps do not fit the DiT.
    """
    scheduler_of(dit.process, dit.space.values, sampling.steps)  # refuses before the folder is written
    check_settings(output, sampling)
    missing = [item for item in wanted if not (output / f"{item.name}.safetensors").exists()]
    device = dit.last.structure.weight.device
    for first in range(0, len(missing), batch):
        some = missing[first : first + batch]
        seeds = [seeds_of(sampling.seed, item.label, [item.number])[0] for item in some]
        texts = [item.text for item in some if item.text is not None]
        predict = guided(dit, [item.label for item in some if item.label], sampling.guidance, texts)
        made = sample(predict, dit.space, dit.process, seeds, steps=sampling.steps, device=device)
        with torch.no_grad():
            latents = dit.normaliser.denormalise(made)
        for place, item in enumerate(some):
            _write(output / f"{item.name}.safetensors", Latents(*(values[place] for values in latents)), item)
        if progress is not None:
            progress(first + len(some))
    return len(missing)


def _write(file: Path, latents: Latents, item: Wanted) -> None:
    tensors = {name: values.cpu().contiguous() for name, values in latents._asdict().items()}
    metadata = {METADATA_KEY: json.dumps({"label": item.label, "number": item.number})}
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, metadata)
