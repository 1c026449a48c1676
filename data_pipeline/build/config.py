"""What `launch/build_shards.py` can be told. `plan_settings` is the part that decides the bytes of the dataset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from data_pipeline.cut.config import ClipConfig
from data_pipeline.dataset.config import MAX_DISTANCE, Duplicates
from data_pipeline.source.config import CaptionConfig, ColumnsConfig, SourcesConfig, SplitConfig, WrongRows
from data_pipeline.store.open import absolute_place, plain_place, without_secrets


@dataclass(frozen=True, kw_only=True)
class UnitResources:
    """What Ray sets aside for one unit while it is in work, or for an actor as long as it lives."""

    cpus: float = 1.0  # cores
    gpus: float = 0.0  # GPUs; a part of one lets several actors share it
    memory_bytes: int = 0  # 0 asks for none

    def __post_init__(self) -> None:
        if min(self.cpus, self.gpus, self.memory_bytes) < 0:
            raise ValueError(f"{self} must not be negative")
        if not self.cpus and not self.gpus:
            raise ValueError(f"{self} must ask for a part of a core or of a GPU: Ray would start all units at once")


@dataclass(kw_only=True)
class DriverConfig:
    """How work units are run on Ray, whatever a unit is."""

    address: str = ""  # Ray cluster to use: empty starts one on this machine, `auto` joins the running one
    cpus: int = 0  # cores of the cluster started here; 0 takes all [>= 0]
    in_flight: int = 0  # units given to Ray at once; 0 keeps two for each that the cluster has room for [>= 0]
    attempts: int = 3  # tries for a unit that fails as a whole, before it is left for the next run [>= 1]
    max_failed: int = 100  # failed units after which a run stops early: then it is not the units, but the store [>= 1]
    progress_s: float = 5.0  # seconds between progress lines when the output is not a terminal [> 0]

    def __post_init__(self) -> None:
        if self.max_failed < 1:
            raise ValueError(f"run.max_failed={self.max_failed} must be at least 1")
        if self.attempts < 1 or self.cpus < 0 or self.in_flight < 0:
            raise ValueError("run.attempts must be at least 1; run.cpus and run.in_flight must not be negative")
        if self.progress_s <= 0:
            raise ValueError(f"run.progress_s={self.progress_s} must be positive")


@dataclass(kw_only=True)
class DatasetRunConfig(DriverConfig, ABC):
    """How the units of a dataset are run."""

    scratch: str = ""  # folder for files in work; empty is the system's temporary folder

    def __post_init__(self) -> None:
        super().__post_init__()
        self.scratch = plain_place(self.scratch, "run.scratch")
        if "://" in self.scratch:
            raise ValueError(f"run.scratch={without_secrets(self.scratch)} is an address; name a local folder")
        if self.scratch:
            self.scratch = absolute_place(self.scratch)  # the workers of a cluster have other current folders

    @property
    @abstractmethod
    def resources(self) -> UnitResources:
        """What Ray sets aside for one unit, or for one actor that does units."""


@dataclass(kw_only=True)
class RunConfig(DatasetRunConfig):
    """How a build of shards is carried out. Nothing here changes the bytes of the dataset."""

    unit_cpus: float = 1.0  # cores that Ray sets aside for one unit; decoder and encoder use one [> 0]
    # memory that Ray sets aside for one unit, for its autoscaler to see; 0 asks for none [>= 0]
    unit_memory_bytes: int = 0
    downloads: int = 4  # videos that one unit fetches at once while it cuts another one; 0 fetches none ahead [>= 0]
    # bytes on each machine for downloads that wait for their turn, together with the videos in work; what is needed
    # next is always fetched; 0 lets none wait [>= 0]
    scratch_bytes: int = 16_000_000_000
    cut_timeout_s: float = 900.0  # a video that decodes for longer is quarantined (timeout) [> 0]
    cut_memory_bytes: int = 4_000_000_000  # a decoder that takes more is stopped and its row quarantined [>= 1]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unit_cpus <= 0 or self.unit_memory_bytes < 0:
            raise ValueError("run.unit_cpus must be positive, run.unit_memory_bytes not negative")
        if self.downloads < 0 or self.scratch_bytes < 0:
            raise ValueError("run.downloads and run.scratch_bytes must not be negative")
        if self.cut_timeout_s <= 0 or self.cut_memory_bytes <= 0:
            raise ValueError("run.cut_timeout_s and run.cut_memory_bytes must be positive")

    @property
    def resources(self) -> UnitResources:
        """What Ray sets aside for one unit."""
        return UnitResources(cpus=self.unit_cpus, memory_bytes=self.unit_memory_bytes)


@dataclass(kw_only=True)
class ShardsConfig:
    """One dataset of shards: from what, to where, how."""

    # a folder of videos, a manifest (.csv .tsv .jsonl .parquet), or a pattern for several, as parts/*.csv; local or s3://
    source: str = "???"
    more_sources: list[str] = field(default_factory=list)  # further ones, whose rows follow
    output: str = "???"  # a folder or s3://bucket/prefix
    # rows that are wrong as they are written: strict refuses the manifest and lists them, record has them rejected
    rows: WrongRows = WrongRows.STRICT
    duplicates: Duplicates = Duplicates.ERROR  # rows with an id seen before: error, or merge (keep the first)
    # drop clips whose hashes differ from an earlier clip of another row in at most so many of 64 bits; null keeps them
    # [0 ... 7]
    near_duplicates: int | None = None
    # most rows of one work unit, which ends where a video ends; 0 chooses 1 to 64 by the size of the manifest
    # [0 ... 1000000]
    unit_rows: int = 0
    shard_bytes: int = 256_000_000  # a shard is closed before it grows beyond this [>= 1000000]
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    clip: ClipConfig = field(default_factory=ClipConfig)
    caption: CaptionConfig = field(default_factory=CaptionConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for key in ("source", "output"):
            if not getattr(self, key):
                raise ValueError(f"{key}= is empty; name a folder, a manifest or s3://bucket/prefix")
            setattr(self, key, plain_place(getattr(self, key), key))
        if not all(self.more_sources):
            raise ValueError("more_sources= holds an empty name; name folders, manifests or patterns")
        self.more_sources = [plain_place(source, "more_sources") for source in self.more_sources]
        if not 0 <= self.unit_rows <= 1_000_000:
            raise ValueError(f"unit_rows={self.unit_rows} must be between 0 (automatic) and 1000000")
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= MAX_DISTANCE:
            raise ValueError(
                f"near_duplicates={self.near_duplicates} must be null, to keep them, or 0 to {MAX_DISTANCE} bits"
            )
        if self.shard_bytes < 1_000_000:
            raise ValueError(f"shard_bytes={self.shard_bytes} must be at least 1000000")

    def plan_settings(self) -> dict[str, Any]:
        """Dotted key -> value of every setting that changes the dataset; two runs must agree on all of them."""
        settings: dict[str, Any] = {
            "duplicates": self.duplicates,
            "near_duplicates": self.near_duplicates,
            "unit_rows": self.unit_rows,
            "shard_bytes": self.shard_bytes,
        }
        for section in ("clip", "caption", "split"):
            settings |= {f"{section}.{key}": value for key, value in asdict(getattr(self, section)).items()}
        return {key: value.value if isinstance(value, Enum) else value for key, value in sorted(settings.items())}
