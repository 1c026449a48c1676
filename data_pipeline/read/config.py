"""Settings of reading: which samples a run reads, in which order and shape. Keys are `data.<field>`."""

from __future__ import annotations

from dataclasses import dataclass, field
from os.path import expanduser
from pathlib import Path

from data_pipeline.source.names import SPLITS
from data_pipeline.store.open import plain_place
from data_pipeline.store.private_folder import private_folder


@dataclass(kw_only=True)
class ReadingConfig:
    """Which dataset is read, in which order, and by how many processes; the same for clips and for latents."""

    # the dataset: a folder or s3://bucket/prefix
    shards: str = "???"
    # which samples: train, val or test
    split: str = "train"
    # examples of one optimizer step, over all ranks and accumulated micro-batches [>= 1]
    global_batch: int = 8
    # independent read positions, a divisor or multiple of global_batch; 0 means global_batch; fixed for a run [>= 0]
    lanes: int = 0
    # samples of one lane that are shuffled together; fixed for a run [>= 1]
    shuffle_window: int = 1024
    # seed of the order and of all that is drawn for an example; fixed for a run [0 ... 2**63 - 1]
    seed: int = 0
    # reading processes of each rank; 0 reads in the training process [>= 0]
    workers: int = 2
    # batches that each worker keeps ready [>= 1]
    prefetch: int = 2
    # seconds without a batch after which the run stops instead of waiting for ever; 0 waits for ever [>= 0]
    timeout_s: int = 600
    # folder for shards of s3:// datasets, shared by the ranks of a node; empty: one among the temporary files
    cache_dir: str = ""
    # most bytes that folder may hold [>= 1]
    cache_bytes: int = 100_000_000_000
    # distinct unreadable samples that a rank skips before the run stops with their list [>= 0]
    max_bad_samples: int = 100

    def __post_init__(self) -> None:
        if not self.shards:
            raise ValueError("data.shards= is empty; name the dataset's folder or s3://bucket/prefix")
        self.shards = plain_place(self.shards, "data.shards")
        self.cache_dir = plain_place(self.cache_dir, "data.cache_dir")
        self._check_least(_LEAST)
        if self.split not in SPLITS:
            raise ValueError(f"data.split={self.split!r} is not a split; use one of {', '.join(SPLITS)}")
        if self.seed >= 2**63:
            raise ValueError(f"data.seed={self.seed} must be below 2**63")
        count, batch = self.lane_count, self.global_batch
        if batch % count and count % batch:
            raise ValueError(
                f"data.lanes={count} neither divides data.global_batch={batch} nor is a multiple of it; set data.lanes "
                f"to a divisor or a multiple of {batch}, or to 0 for {batch}"
            )

    def _check_least(self, least: dict[str, int]) -> None:
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise ValueError(f"data.{key}={getattr(self, key)} must be at least {bound}")

    @property
    def lane_count(self) -> int:
        """C: `lanes`, or the global batch where that is 0."""
        return self.lanes or self.global_batch

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or this user's closed folder, made when it is missing. Raises: as `private_folder`."""
        return Path(expanduser(self.cache_dir)) if self.cache_dir else private_folder("shards")


@dataclass(kw_only=True)
class DataConfig(ReadingConfig):
    """Reading shards. `docs/data_order.md` explains lanes, windows and what may change between two starts of a run."""

    # dataset made by launch/build_shards.py: a folder or s3://bucket/prefix
    shards: str = "???"
    # frames of one training example; clips with fewer are left out and counted [>= 1]
    frames: int = 16
    # numbers of frames to mix, e.g. [4,8,16] with frames=16: each step takes one of them for all of its examples, so
    # batches stay rectangular on every rank; empty = always `frames`. The model must take them (model.min_frames)
    # [each >= 1]
    frame_counts: list[int] = field(default_factory=list)
    # how often each of them is taken, in proportion, e.g. [1,1,2]; empty = equally often [each > 0]
    frame_shares: list[float] = field(default_factory=list)
    # take every n-th stored frame [>= 1]
    frame_stride: int = 1
    # side of the square training example in pixels; even [>= 2]
    image_size: int = 224
    # scale the stored short side (256) to this before cropping image_size; 0 crops stored pixels as they are [>= 0]
    resize: int = 0
    # mirror half of the examples left to right
    hflip: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_least(_LEAST_OF_CLIPS)
        if self.image_size % 2:
            raise ValueError(f"data.image_size={self.image_size} must be even: stored colour has half the resolution")
        if self.resize and self.resize < self.image_size:
            raise ValueError(
                f"data.resize={self.resize} is smaller than data.image_size={self.image_size}, so there is no such "
                f"square to crop; set data.resize={self.image_size} or more, or 0 to crop stored pixels"
            )
        self._check_frame_counts()

    def _check_frame_counts(self) -> None:
        counts, shares = self.frame_counts, self.frame_shares
        if counts and (sorted(set(counts)) != counts or counts[0] < 1 or counts[-1] != self.frames):
            raise ValueError(
                f"data.frame_counts={counts} must rise from at least 1 to data.frames={self.frames}, without repeats; "
                f"for instance data.frame_counts={sorted({max(1, self.frames // 2), self.frames})}"
            )
        if shares and (len(shares) != len(counts) or min(shares) <= 0):
            raise ValueError(
                f"data.frame_shares={shares} must hold a positive number for each of data.frame_counts={counts}, or "
                "be empty for equal shares"
            )

    @property
    def frame_span(self) -> int:
        """Stored frames from the first to the last of an example of `frames` frames: a clip needs this many."""
        return self.span_of(self.frames)

    def span_of(self, frames: int) -> int:
        """Stored frames from the first to the last of an example of that many frames."""
        return (frames - 1) * self.frame_stride + 1


@dataclass(kw_only=True)
class LatentDataConfig(ReadingConfig):
    """Reading latents, in the order that clips are read in. `docs/latents_reading.md` says what a batch holds."""

    # dataset made by launch/encode_latents.py: a folder or s3://bucket/prefix
    shards: str = "???"
    # also read the samples that were encoded with left and right exchanged, where the dataset has them
    mirrored: bool = True
    # draw each latent from its stored posterior, anew in each epoch; false = the posterior's mean
    sample: bool = False
    # subtract the mean of each channel and divide by its deviation, both of the dataset's training split
    normalize: bool = False
    # token embeddings of the captions, made by launch/encode_text.py of these latents: a folder or s3://bucket/prefix;
    # each example then brings those of one of its captions, drawn anew in each epoch; empty = none
    text: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text = plain_place(self.text, "data.text")


_LEAST = {
    "global_batch": 1,
    "lanes": 0,
    "shuffle_window": 1,
    "seed": 0,
    "workers": 0,
    "prefetch": 1,
    "timeout_s": 0,
    "cache_bytes": 1,
    "max_bad_samples": 0,
}
_LEAST_OF_CLIPS = {"frames": 1, "frame_stride": 1, "image_size": 2, "resize": 0}
