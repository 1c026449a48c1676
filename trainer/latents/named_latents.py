"""Latents that are to become videos: those of a dataset, and those in files that somebody else's model has made.

Shapes: structure [d_S, n_q, h_S, w_S], dynamics [d_D, f, w_D + h_D], of f frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

import safetensors.torch
import torch
from torch import Tensor

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.kind import LATENTS
from data_pipeline.read.latent_dataset import LatentDataset
from data_pipeline.read.normalization import Normalization
from data_pipeline.read.two_tries import UnreadableSample
from data_pipeline.store.open import open_store
from model.config import VidTwinConfig
from model.weights import UNREADABLE, not_complete
from trainer.latents.encoder import ModelIdentity
from trainer.latents.sample_metadata import refuse_sample_of_another

TENSOR_FILE = ".safetensors"
"""The ending of a file that holds latents without a dataset around them."""


@dataclass(frozen=True, kw_only=True)
class NamedLatents:
    """The latents of one video."""

    name: str  # of the file that will be written, without its ending
    place: str  # where the latents come from, for messages
    structure: Tensor  # [d_S, n_q, h_S, w_S]
    dynamics: Tensor  # [d_D, f, w_D + h_D]
    fps: Fraction
    normalization: Normalization | None = None


def require_finite(structure: Tensor, dynamics: Tensor, when: str = "") -> None:
    """Refuse latents that have no pixels.

    Args:
        structure, dynamics: fp32, of any shape.
        when: in which step they are, for the message.
    Raises:
        ValueError: a value is infinite or no number.
    """
    for name, values in (("structure", structure), ("dynamics", dynamics)):
        if not torch.isfinite(values).all():
            raise ValueError(f"{name} has a value that is infinite or no number in fp32{when}, which has no pixels")


@dataclass(frozen=True)
class _Stored:
    """The latents of an open dataset, read one after another while they are iterated over.

    Attributes:
        place: of the dataset.
        keys: of the samples that are wanted, in their order.
        fps: frames a second.
    """

    place: str
    dataset: LatentDataset
    keys: Sequence[str]
    fps: Fraction

    def __iter__(self) -> Iterator[NamedLatents]:
        for key, place in self.names():
            with naming_damage(self.place):
                item = self.dataset[key]
            yield NamedLatents(
                name=key, place=place, structure=item["structure"], dynamics=item["dynamics"], fps=self.fps
            )

    def names(self) -> Iterator[tuple[str, str]]:
        """Name and place of each."""
        return ((key, f"{self.place} {key}") for key in self.keys)


def _stored(
    place: str, model: ModelIdentity, *, split: str, keys: Sequence[str], limit: int | None, fps: Fraction | None
) -> _Stored:
    """Open a dataset; no sample is read yet.

    Args:
        place: folder or s3://bucket/prefix.
        model: the one that decodes.
        keys: only these samples; none = all of the split, in the order of its index.
        limit: at most so many.
        fps: frames a second; None: those of the windows that were encoded.
    Raises:
        ValueError: no dataset of latents, latents of another model, or an unknown key.
        StoreError: the storage fails.
    """
    stored = DatasetFile.load(open_store(place), LATENTS, named="--latents ")
    _refuse_another_model(stored, model, f"--latents {place}")
    dataset = LatentDataset(place, split)
    unknown = sorted(set(keys) - set(dataset.keys)) if keys else []
    if unknown:
        raise ValueError(
            f"--key {unknown[0]}: --latents {place} has no such sample in split {split!r}; "
            f"its first one is {dataset.keys[0]}"
        )
    assert stored.latents is not None
    rate = fps or stored.fps / int(stored.latents.windows["frame_stride"])
    return _Stored(place, dataset, (keys or dataset.keys)[:limit], rate)


@contextmanager
def naming_damage(place: str) -> Iterator[None]:
    """Inside, a sample of the dataset `--latents PLACE` that cannot be read is refused with what says more.

    Raises:
        ValueError: naming the dataset, the sample and the remedy.
    """
    try:
        yield
    except UnreadableSample as error:
        raise ValueError(
            f"--latents {place}: {error.bad}; launch/verify_shards.py --shards {place} says what else is damaged"
        ) from error


def _refuse_another_model(stored: DatasetFile, model: ModelIdentity, named: str) -> None:
    """Refuse a dataset that other weights have encoded.

    Args:
        stored: dataset.json of the latents.
        model: the one that decodes.
        named: the option and the place of the dataset.
    Raises:
        ValueError: with the digests of both.
    """
    assert stored.latents is not None
    if stored.latents.weights != model.weights:
        raise ValueError(
            f"{named} was encoded by the model whose weights have the digest {stored.latents.weights}, and "
            f"those of --model have {model.weights}; name the model that encoded them"
        )


def latents_of_file(
    place: str, config: VidTwinConfig, fps: Fraction, normalization: Normalization | None = None, weights: str = ""
) -> Iterator[NamedLatents]:
    """The latents in a file of tensors.

    Args:
        place: a .safetensors file, or its s3:// address. It holds `structure` and `dynamics`, or `dynamics_w` and
            `dynamics_h` in its place, each with or without a batch axis; other tensors are passed over.
        config: of the model that decodes.
        fps: frames a second.
        normalization: by which the latents were normalised; None: they were not.
        weights: digest of the weights of the model that decodes, which a sample of `launch/sample.py` must be made for;
            empty: whose latents a sample holds is already known.
    Raises:
        ValueError: the file is a sample of another autoencoder, is damaged, or lacks a tensor, or one has another
            shape or a value that is no number. All of the file is looked at before its first latents are returned.
        OSError: the file is missing, or the storage fails.
    """
    folder, _, name = place.rpartition("/")
    data = open_store(folder or ("/" if place.startswith("/") else ".")).read(name)
    try:
        found = safetensors.torch.load(data)
    except UNREADABLE as error:
        raise not_complete(place, error) from error
    except KeyError as error:
        raise ValueError(
            f"{place} holds a tensor of the type {error}, which torch does not read; store fp32"
        ) from error
    if weights:
        refuse_sample_of_another(data, weights, place)
    structure, dynamics, batched = _checked(found, config, place)
    stem = name.removesuffix(TENSOR_FILE)
    places = [f"{place} number {number}" if batched else place for number in range(len(structure))]
    for number, where in enumerate(places):
        try:
            require_finite(structure[number], dynamics[number])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    for number, where in enumerate(places):
        yield NamedLatents(
            name=f"{stem}-{number:05d}" if batched else stem,
            place=where,
            structure=structure[number],
            dynamics=dynamics[number],
            fps=fps,
            normalization=normalization,
        )


def latents_of(
    places: Sequence[str],
    model: ModelIdentity,
    *,
    split: str,
    keys: Sequence[str] = (),
    limit: int | None = None,
    fps: Fraction | None = None,
    statistics: str | None = None,
) -> Iterator[NamedLatents]:
    """The latents of several datasets and files, one after the other.

    All files are read, and all datasets opened, before the first latents are given, so that a bad one costs no work.

    Args:
        places: those that end in `.safetensors` are files.
        limit: at most so many of each place.
        statistics: dataset of latents by whose statistics the latents in files were normalised; None: they were not.
        model: the one that decodes.
        split, keys: which samples of datasets; no keys = all of the split, in the order of its index.
        fps: frames a second; None: those of the windows that were encoded. Files need it.
    Raises:
        ValueError: no dataset of latents, latents of another model, an unknown key, a bad file (`latents_of_file`), or
            two latents of one name.
        OSError: a file is missing, or the storage fails.
    """
    normalization = None
    if statistics is not None:
        described = DatasetFile.load(open_store(statistics), LATENTS, named="--statistics ")
        _refuse_another_model(described, model, f"--statistics {statistics}")
        assert described.latents is not None
        normalization = Normalization.of(described.latents)
    found: list[list[NamedLatents] | _Stored] = []
    for place in places:
        if place.endswith(TENSOR_FILE):
            assert fps is not None
            found.append(list(islice(latents_of_file(place, model.config, fps, normalization, model.weights), limit)))
        else:
            found.append(_stored(place, model, split=split, keys=keys, limit=limit, fps=fps))
    _refuse_one_name(found)
    for latents in found:
        yield from latents


def _refuse_one_name(found: Sequence[list[NamedLatents] | _Stored]) -> None:
    """Refuse latents that would become videos of one name. Raises: ValueError."""
    places: dict[str, str] = {}
    for latents in found:
        for name, place in latents.names() if isinstance(latents, _Stored) else ((i.name, i.place) for i in latents):
            if name in places:
                raise ValueError(
                    f"--latents {place} and {places[name]} would both be the video {name}.mp4; decode them into two "
                    "folders, or name the latents once"
                )
            places[name] = place


def _checked(found: Mapping[str, Tensor], config: VidTwinConfig, place: str) -> tuple[Tensor, Tensor, bool]:
    """structure and dynamics in fp32 with a batch axis, and whether the file has one. Raises: ValueError."""
    channels, most, sides = config.dynamics_shape
    parts = ("dynamics_w", "dynamics_h")
    frames = f"{config.shortest} to {most}" if config.shortest < most else str(most)
    expected = (
        f"structure {list(config.structure_shape)} and dynamics [{channels}, f, {sides}], or dynamics_w and dynamics_h "
        f"[{channels}, f, {sides // 2}] in its place, with f = {frames}, each with or without a batch axis before it"
    )
    joined, divided = "dynamics" in found, all(part in found for part in parts)
    if "structure" not in found or joined == divided:
        raise ValueError(f"{place} holds the tensors {sorted(found)}; {expected} are needed")
    structure = found["structure"]
    wanted: dict[str, tuple[Tensor, tuple[int, ...]]] = {"structure": (structure, config.structure_shape)}
    for name in ("dynamics",) if joined else parts:
        length = found[name].shape[-2] if found[name].dim() >= 3 else 0
        fits = length if config.shortest <= length <= most else most
        wanted[name] = (found[name], (channels, fits, sides if joined else sides // 2))
    batched = structure.dim() == len(config.structure_shape) + 1
    for name, (tensor, shape) in wanted.items():
        axes = tuple(tensor.shape)
        right = axes == ((len(structure), *shape) if batched else shape)
        if not right or not tensor.dtype.is_floating_point:
            raise ValueError(f"{place}: {name} is {list(axes)} of {tensor.dtype}; {expected} are needed")
    if batched and not len(structure):
        raise ValueError(f"{place} holds the latents of no video: the batch axis of structure is 0")
    if divided and found["dynamics_w"].shape != found["dynamics_h"].shape:
        raise ValueError(f"{place}: dynamics_w and dynamics_h have different numbers of frames")
    # To fp32 first: torch neither joins tensors of 8-bit floating-point types nor says whether they are finite.
    structure = structure.float()
    dynamics = torch.cat([found[part].float() for part in (("dynamics",) if joined else parts)], dim=-1)
    return (structure, dynamics, True) if batched else (structure[None], dynamics[None], False)
