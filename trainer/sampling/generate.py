"""Samples as files: one .safetensors of latents each, which `launch/decode_latents.py` decodes; what exists is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from data_pipeline.store.files import atomic_file
from model.dit import DiT
from model.dit_config import Conditioning
from model.network import Latents
from trainer.engine.want_of_memory import batch_in_memory
from trainer.latents.named_latents import TENSOR_FILE
from trainer.latents.sample_metadata import SampleMetadata, check_made
from trainer.sampling.account import Account
from trainer.sampling.sampler import guided, sample, scheduler_of, seeds_of
from trainer.team import ALONE, Team

SAMPLES = Account(name="sampling.json", ending=TENSOR_FILE, what="samples")
PAPERS_GUIDANCE = 5.0
PROMPTS_KEY = "prompts"
"""The key of `sampling.json` that says which prompt the files of a name belong to, or will belong to."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What decides the values of the samples, and which autoencoder turns them into videos."""

    weights: str  # SHA-256 of the DiT's file of weights
    autoencoder: str  # digest of the weights of the autoencoder whose latents the DiT makes; empty where it says none
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
    try:
        numbers = dit.class_numbers(chosen)
    except ValueError as error:
        raise ValueError(f"--classes: {error}") from error
    places = zip(chosen, numbers, strict=True)
    return [
        Wanted(label, number, f"class{place:04d}-{number:05d}") for label, place in places for number in range(count)
    ]


def guidance_of(dit: DiT, asked: float | None) -> float:
    """The guidance that samples are made with: what was asked for, else the paper's, and 1 without a condition.

    Args:
        asked: see `guided`; None = nothing was asked for.
    Raises:
        ValueError: guidance for a DiT without a condition, which it would not change.
    """
    if dit.config.condition is not Conditioning.none:
        return PAPERS_GUIDANCE if asked is None else asked
    if asked is not None and asked != 1:
        raise ValueError(
            f"--guidance {asked:g} leads samples to a class or a prompt, and --model is a DiT without a condition "
            "(dit.condition=none); leave --guidance away"
        )
    return 1.0


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
        ValueError: `output` holds samples of other settings or a folder in the place of a sample, the steps do not fit
            the DiT, it makes numbers that are not finite, or so many samples together need too much memory.
        StoreError: the disk is full.
    """
    scheduler_of(dit.process, dit.space.values, sampling.steps)  # refuses before the folder is written

    def look() -> list[Wanted]:
        SAMPLES.begin(output, asdict(sampling))
        _record_prompts(output, wanted)
        files = {item.name: output / f"{item.name}{TENSOR_FILE}" for item in wanted}
        for file in files.values():
            if file.exists():
                check_made(file)
        return [item for item in wanted if not files[item.name].exists()]

    def make(some: Sequence[Wanted]) -> None:
        with batch_in_memory(f"--batch {batch}"):
            _make(dit, sampling, some, output)

    missing = team.of_main(look)
    team.work(missing, batch, make, progress)
    return len(missing)


def _record_prompts(output: Path, wanted: Sequence[Wanted]) -> None:
    """Add to `sampling.json` which prompt each name stands for, before there is a sample of it; earlier ones stay."""
    prompts = {item.name.rpartition("-")[0]: item.label for item in wanted if item.text is not None}
    if not prompts:
        return
    settings = SAMPLES.read(output, ())
    known = settings.get(PROMPTS_KEY, {})
    if known | prompts != known:
        SAMPLES.write(output, settings | {PROMPTS_KEY: dict(sorted((known | prompts).items()))})


def _make(dit: DiT, sampling: Sampling, some: Sequence[Wanted], output: Path) -> None:
    device = dit.last.structure.weight.device
    seeds = [seeds_of(sampling.seed, item.label, [item.number])[0] for item in some]
    texts = [item.text for item in some if item.text is not None]
    predict = guided(dit, [item.label for item in some if item.label], sampling.guidance, texts)
    made = sample(predict, dit.space, dit.process, seeds, steps=sampling.steps, device=device)
    with torch.no_grad():
        latents = dit.normaliser.denormalise(made)
    whole = [Latents(*(values[place].cpu().contiguous() for values in latents)) for place in range(len(some))]
    for item, one in zip(some, whole, strict=True):
        _refuse_not_finite(one, item, sampling.guidance)
    for item, one in zip(some, whole, strict=True):
        metadata = SampleMetadata(label=item.label, number=item.number, autoencoder=sampling.autoencoder)
        with atomic_file(output / f"{item.name}{TENSOR_FILE}") as temporary:
            # `save_file` makes files that their owner alone may read.
            temporary.write_bytes(save(one._asdict(), metadata.to_metadata()))


def _refuse_not_finite(latents: Latents, item: Wanted, guidance: float) -> None:
    if all(bool(torch.isfinite(values).all()) for values in latents):
        return
    cause = "so its training has failed; name weights of an earlier checkpoint"
    if guidance > 1:
        cause = (
            f"so its training has failed or --guidance {guidance:g} is too strong for it; name weights of an earlier "
            "checkpoint, or try --guidance 1"
        )
    raise ValueError(f"--model makes numbers that are not finite (the sample {item.name}), {cause}")
