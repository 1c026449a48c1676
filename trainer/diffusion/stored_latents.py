"""The latents of a dataset as a diffusion takes them: what they are, those to train from, and those held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.dataset.latent_records import STATISTICS_SPLIT
from data_pipeline.dataset.latent_tensors import MEANS
from data_pipeline.dataset.text_records import TextsDescription
from data_pipeline.read.batches import Position
from data_pipeline.read.config import LatentDataConfig
from data_pipeline.read.latent_dataset import LatentDataset, LatentItem
from data_pipeline.read.latent_loader import LatentBatch, LatentLoader
from data_pipeline.read.texts import padded_texts
from data_pipeline.read.two_tries import UnreadableSample
from data_pipeline.store.counted import counted
from model.dit_config import Conditioning, LatentSpace
from model.latent_statistics import Statistics
from trainer.config.diffusion import HELD_OUT_SPLIT, DiffusionConfig
from trainer.diffusion import data
from trainer.diffusion.same_latents import LATENTS, check_same_latents, latents_identity
from trainer.distributed import Ranks


def with_texts(space: LatentSpace, texts: TextsDescription) -> LatentSpace:
    """The same latents, beside captions of a dataset of texts."""
    return replace(
        space,
        text_width=texts.width,
        text_encoder=texts.encoder,
        text_max_tokens=texts.max_tokens,
        text_empty_tokens=texts.empty_tokens,
    )


class TrainingLatents(LatentLoader):
    """`LatentLoader` whose position has a meaning only for the same kind of latents, and the same classes or texts.

    Args:
        classed: the labels of the samples are classes.
        config, rank, world_size, pin_memory: of `LatentLoader`.
    Raises:
        ValueError: also where the dataset has no statistics, or a sample has no label although `classed`.
    """

    def __init__(
        self,
        config: LatentDataConfig,
        rank: int = 0,
        world_size: int = 1,
        *,
        classed: bool,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(config, rank, world_size, pin_memory=pin_memory)
        self.statistics: Statistics = self._statistics()
        structure, along_w, along_h = (self.description.shapes[name] for name in MEANS)
        assert along_w == along_h, "VidTwin's latents are square"
        d_s, n_q, h, w = structure
        channels, frames, side = along_w
        space = LatentSpace(
            structure_shape=(d_s, n_q, h, w),
            dynamics_shape=(channels, frames, 2 * side),
            classes=self._classes() if classed else (),
            autoencoder=self.description.weights,
        )
        self.space = space if self.texts is None else with_texts(space, self.texts.description)

    @property
    def identity(self) -> dict[str, Any]:
        """That of `LatentLoader`, with the latents, classes and texts."""
        return super().identity | {LATENTS: latents_identity(self.space)}

    def continue_from(self, saved: Mapping[str, Any], position: Position) -> str:
        """See `SampleLoader.continue_from`; latents of another kind and other classes are refused, too."""
        check_same_latents(saved, self.space, f"data.shards={self.config.shards}")
        return super().continue_from(saved, position)

    def _statistics(self) -> Statistics:
        found = self.description.statistics
        if not all(statistics.values for statistics in found.values()):
            raise ValueError(
                f"data.shards={self.config.shards} has no statistics, by which a DiT normalises latents, because it "
                f"has no sample of the split {STATISTICS_SPLIT!r}; encode clips of that split, too"
            )
        return found

    def _classes(self) -> tuple[str, ...]:
        """The labels of the samples that are read, in the order of their letters; () where no sample has one."""
        rows, found, unlabelled = self.selection.rows, set[str](), list[int]()
        for start, (labels,) in self.table.columns("label"):
            begin, end = np.searchsorted(rows, [start, start + len(labels)])
            mine = rows[begin:end]
            here = labels[mine - start]
            found.update(here.tolist())
            unlabelled += [] if unlabelled else mine[here == ""][:1].tolist()
        found.discard("")
        if found and unlabelled:
            raise ValueError(
                f"data.shards={self.config.shards}: the sample {self.table[unlabelled[0]].key} of the split "
                f"{self.config.split!r} has no label, and others have; give every clip a label, or set "
                "dit.condition=none"
            )
        return tuple(sorted(found))


class StoredLatents:
    """The data of a run (see `LatentData`).

    Raises:
        ValueError: the dataset cannot be trained from, or validation has no held-out clips, one without a label or of
            a class that no training sample has, or one that cannot be read.
        StoreError: the storage fails.
    """

    def __init__(self, config: DiffusionConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        self.loader = TrainingLatents(
            config.data,
            ranks.rank,
            ranks.world_size,
            classed=config.dit.condition is Conditioning.class_,
            pin_memory=ranks.device.type == "cuda",
        )
        self.space, self.statistics = self.loader.space, self.loader.statistics
        texts = self.loader.texts
        self.empty_caption = None if texts is None else torch.from_numpy(texts.empty)
        self.held_out_clips, self._held_out_samples = 0, 0
        self.held_out: Iterable[data.LatentBatch] = self._hold_out() if config.validation.every else ()

    def describe(self) -> list[str]:
        """A line for each split that is read."""
        lines = [self.loader.describe()]
        if self.config.validation.every:
            samples = counted(self._held_out_samples, "sample")
            lines.append(
                f"{self.config.data.shards}, split {HELD_OUT_SPLIT}: {self.held_out_clips} of {samples} are measured"
            )
        return lines

    def _hold_out(self) -> list[LatentBatch]:
        """This rank's share of the held-out latents: posterior means, spread evenly over the split, not mirrored.

        The latents are read once and stay in memory, so that one that cannot be read is known before training.
        """
        config, place, every = self.config, self.config.data.shards, self.config.validation.every
        try:
            dataset = LatentDataset(
                place,
                HELD_OUT_SPLIT,
                mirrored=False,
                cache_dir=config.data.cache_dir,
                cache_bytes=config.data.cache_bytes,
            )
        except ValueError as error:
            raise ValueError(
                f"validation.every={every} wants latents of the split {HELD_OUT_SPLIT!r}: {error}. Encode clips of "
                "that split, too, or set validation.every=0"
            ) from error
        total = self._held_out_samples = len(dataset)
        count = self.held_out_clips = min(config.validation.clips, total)
        rank, world = self.ranks.rank, self.ranks.world_size
        mine = [number * total // count for number in range(count * rank // world, count * (rank + 1) // world)]
        size, _ = config.split_batch(world)
        found: list[LatentBatch] = []
        for first in range(0, len(mine), size):
            numbers = mine[first : first + size]
            try:
                items = dataset.__getitems__(numbers)
                captions = [some[0] for some in dataset.captions(numbers)] if self.loader.texts is not None else []
            except UnreadableSample as error:
                raise ValueError(
                    f"validation.every={every} measures a sample of the split {HELD_OUT_SPLIT!r} that cannot be read: "
                    f"{error}; run launch/verify_shards.py on {place} and encode what it names again"
                ) from error
            found.append(self._batch(items, captions, numbers))
        return found

    def _batch(self, items: list[LatentItem], first_captions: list[str], numbers: list[int]) -> LatentBatch:
        """Items of a dataset as a batch. Raises: ValueError for a class or a caption that the training does not know.

        Args:
            first_captions: with data.text, the first caption of each.
        """
        for item in items:
            if self.space.classes and not item["label"]:
                raise ValueError(
                    f"data.shards={self.config.data.shards}: the held-out sample {item['key']} has no label, and "
                    "dit.condition=class needs one; give every clip a label, set dit.condition=none, or set "
                    "validation.every=0"
                )
            if self.space.classes and item["label"] not in self.space.classes:
                raise ValueError(
                    f"data.shards={self.config.data.shards}: the class {item['label']!r} of the held-out sample "
                    f"{item['key']} has no sample in the split {self.config.data.split!r}; encode clips of it for that "
                    "split, take the held-out ones down, or set validation.every=0"
                )
        captions, labels, keys = ([item[name] for item in items] for name in ("caption", "label", "key"))
        structure, dynamics = (torch.stack([item[name] for item in items]) for name in ("structure", "dynamics"))
        text: Tensor | None = None
        mask: Tensor | None = None
        if self.loader.texts is not None:
            text, mask = padded_texts(
                [self.loader.texts.read(*pair) for pair in zip(first_captions, keys, strict=True)]
            )
            captions = first_captions
        return LatentBatch(
            structure=structure,
            dynamics=dynamics,
            text=text,
            text_mask=mask,
            captions=captions,
            labels=labels,
            keys=keys,
            indices=torch.tensor(numbers),
            position=Position(),
        )
