"""What commit records and dataset.json say of latents: exact sums, rounding errors, model, windows, statistics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from typing import Any

from data_pipeline.dataset.config import LatentDtype
from data_pipeline.dataset.exact_sums import UNIT_EXPONENT, ChannelSums
from data_pipeline.dataset.fields import Fields, Number
from data_pipeline.dataset.kind import KIND_KEY, LATENTS
from data_pipeline.dataset.latent_tensors import AXES, LOGVARS, MEANS

MOST_VALUES = 2**28
"""Largest number of values of a stored tensor. A description with more would only take the memory of its reader."""
STATISTICS_SPLIT = "train"
"""Split whose samples the statistics are computed over: what a training normalises by must not know other splits."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How much of a tensor was lost when it was rounded to the stored type, over some samples.

    It is measured when a sample is encoded, so samples that were taken down later are still counted.
    """

    values: int  # how many numbers were rounded
    largest: float  # largest absolute difference between a number and what is stored of it
    squares: int  # exact sum of the squares of the differences, in units of 2**-298

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(
            values=self.values + other.values,
            largest=max(self.largest, other.largest),
            squares=self.squares + other.squares,
        )

    @property
    def rms(self) -> float:
        """Root mean square of the differences."""
        return math.sqrt(float(Fraction(self.squares, max(1, self.values) << 2 * UNIT_EXPONENT)))

    def to_json(self) -> dict[str, Any]:
        """The stored object of a commit record."""
        return {"values": self.values, "largest": self.largest, "squares": format(self.squares, "x")}

    @staticmethod
    def from_json(fields: Fields) -> Rounding:
        """Raises: FieldError."""
        text = fields.text("squares")
        try:
            squares = int(text, 16)
        except ValueError:
            raise fields.wrong("squares", "a whole number in hexadecimal", text) from None
        return Rounding(values=fields.integer("values"), largest=float(fields.number("largest")), squares=squares)


@dataclass(frozen=True, kw_only=True)
class UnitLatents:
    """The field `latents` of a commit record: what only a unit of latents has."""

    device: str  # kind of device that encoded the unit, such as `cpu AVX2` or `NVIDIA H100 80GB HBM3`
    sums: dict[str, ChannelSums]  # tensor of means -> exact sums over the unit's samples of STATISTICS_SPLIT
    rounding: dict[str, Rounding]  # stored tensor -> what rounding lost, over all samples that were encoded

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "device": self.device,
            "sums": {name: sums.to_json() for name, sums in self.sums.items()},
            "rounding": {name: rounding.to_json() for name, rounding in self.rounding.items()},
        }

    @staticmethod
    def from_json(fields: Fields) -> UnitLatents:
        """Raises: FieldError."""
        return UnitLatents(
            device=fields.text("device"),
            sums=fields.record_by_name("sums", ChannelSums.from_json),
            rounding=fields.record_by_name("rounding", Rounding.from_json),
        )


@dataclass
class LatentTotals:
    """The fields `latents` of any number of commit records, added. No order of adding changes the result."""

    sums: dict[str, ChannelSums] = field(default_factory=dict)
    rounding: dict[str, Rounding] = field(default_factory=dict)
    devices: Counter[str] = field(default_factory=Counter)  # kind of device -> units

    def add(self, unit: UnitLatents) -> None:
        """Add one unit. A unit that holds no sample was encoded by no device."""
        for name, sums in unit.sums.items():
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        for name, rounding in unit.rounding.items():
            self.rounding[name] = self.rounding[name] + rounding if name in self.rounding else rounding
        if unit.device:
            self.devices[unit.device] += 1


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """What a plan of latents records: all that decides their bytes besides clips, program and device."""

    fps: Number  # frames a second of the clips
    weights: str  # SHA-256 over the tensors of the model that encodes
    model: Mapping[str, Any]  # dotted key of the model's configuration -> value
    dtype: LatentDtype  # of every stored tensor
    shapes: Mapping[str, tuple[int, ...]]  # stored tensor -> its shape
    windows: Mapping[str, Any]  # setting of the windows -> value; among them `frames` and `image_size`
    encode: Mapping[str, Any] = field(default_factory=dict)  # batch, threads, precision
    shard_bytes: int = 256_000_000  # a shard is closed before it grows beyond this

    def to_settings(self) -> dict[str, Any]:
        """The `config` of plan.json: dotted key -> value."""
        settings: dict[str, Any] = {
            KIND_KEY: LATENTS.name,
            "source.fps": self.fps,
            "model.weights": self.weights,
            "stored.dtype": self.dtype.value,
            "shard_bytes": self.shard_bytes,
        }
        for prefix, values in (("model.config", self.model), ("windows", self.windows), ("encode", self.encode)):
            settings |= {f"{prefix}.{key}": value for key, value in values.items()}
        settings |= {f"stored.shapes.{name}": list(shape) for name, shape in self.shapes.items()}
        return dict(sorted(settings.items()))

    @staticmethod
    def of(settings: Mapping[str, Any]) -> LatentSettings:
        """What a plan's settings say."""
        return LatentSettings(
            fps=settings["source.fps"],
            weights=settings["model.weights"],
            model=_section(settings, "model.config"),
            dtype=LatentDtype(settings["stored.dtype"]),
            shapes={name: tuple(shape) for name, shape in _section(settings, "stored.shapes").items()},
            windows=_section(settings, "windows"),
            encode=_section(settings, "encode"),
            shard_bytes=settings["shard_bytes"],
        )


def _section(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    start = f"{prefix}."
    return {key.removeprefix(start): value for key, value in settings.items() if key.startswith(start)}


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation (population) of each channel of a tensor, over the samples of STATISTICS_SPLIT."""

    values: int  # how many values each channel has; 0: the split has no sample, and both lists are empty
    mean: tuple[float, ...]  # [C]
    deviation: tuple[float, ...]  # [C]

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {"values": self.values, "mean": list(self.mean), "deviation": list(self.deviation)}

    @staticmethod
    def from_json(fields: Fields, channels: int) -> ChannelStatistics:
        """The statistics of a tensor with so many channels. Raises: FieldError."""
        values = fields.integer("values")
        expected = channels if values else 0
        found = {name: tuple(map(float, fields.numbers(name))) for name in ("mean", "deviation")}
        for name, numbers in found.items():
            if len(numbers) != expected:
                raise fields.wrong(name, f"a list of {expected} numbers", list(numbers))
        if min(found["deviation"], default=0.0) < 0:
            raise fields.wrong("deviation", "a list of numbers that are not negative", list(found["deviation"]))
        return ChannelStatistics(values=values, **found)


@dataclass(frozen=True, kw_only=True)
class StoredRounding:
    """What rounding lost of a tensor, over all encoded samples."""

    largest: float
    rms: float

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {"largest": self.largest, "rms": self.rms}

    @staticmethod
    def from_json(fields: Fields) -> StoredRounding:
        """Raises: FieldError."""
        return StoredRounding(largest=float(fields.number("largest")), rms=float(fields.number("rms")))


def _statistics(settings: LatentSettings, totals: LatentTotals, name: str) -> ChannelStatistics:
    sums = totals.sums.get(name) or ChannelSums.nothing(settings.shapes[name][0])
    return ChannelStatistics(values=sums.values, mean=tuple(sums.means()), deviation=tuple(sums.deviations()))


def _shapes(fields: Fields) -> dict[str, tuple[int, ...]]:
    """The shape of each stored tensor. Raises: FieldError for shapes that latents cannot have."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, of_mean in (*zip(MEANS, MEANS, strict=True), *zip(LOGVARS, MEANS, strict=True)):
        if name in LOGVARS and name not in fields:
            continue
        sizes, axes = fields.integers(name), AXES[of_mean]
        if len(sizes) != axes or min(sizes) < 1 or math.prod(sizes) > MOST_VALUES:
            raise fields.wrong(name, f"{axes} sizes from 1 on, of at most {MOST_VALUES} values together", sizes)
        shapes[name] = tuple(sizes)
        if shapes[name] != shapes[of_mean]:
            raise fields.wrong(name, f"the shape {list(shapes[of_mean])} of {of_mean}", sizes)
        if name == "dynamics_h" and shapes[name][:-1] != shapes["dynamics_w"][:-1]:
            raise fields.wrong(name, "as dynamics_w but for the last size", sizes)
    return dict(sorted(shapes.items()))


def _windows(windows: dict[str, Any]) -> dict[str, Any]:
    """How windows were chosen, with the numbers that readers need. Raises: FieldError."""
    fields = Fields(windows, ("latents", "windows"))
    for name in ("frames", "frame_stride", "image_size"):
        if (value := fields.integer(name)) < 1:
            raise fields.wrong(name, "at least 1", value)
    return windows


@dataclass(frozen=True, kw_only=True)
class LatentsDescription:
    """The field `latents` of dataset.json: what readers of latents need to know."""

    weights: str  # SHA-256 over the tensors of the model
    model: dict[str, Any]  # dotted key of the model's configuration -> value
    dtype: LatentDtype
    shapes: dict[str, tuple[int, ...]]  # stored tensor -> its shape, see latent_tensors.py
    windows: dict[str, Any]  # how windows were chosen: kind, frames, image_size, ...
    statistics: dict[str, ChannelStatistics]  # tensor of means -> statistics over STATISTICS_SPLIT
    rounding: dict[str, StoredRounding]  # stored tensor -> what rounding lost
    devices: dict[str, int]  # kind of device -> units

    @staticmethod
    def of(settings: LatentSettings, totals: LatentTotals) -> LatentsDescription:
        """The description of a dataset with these settings and totals."""
        return LatentsDescription(
            weights=settings.weights,
            model=dict(settings.model),
            dtype=settings.dtype,
            shapes=dict(settings.shapes),
            windows=dict(settings.windows),
            statistics={name: _statistics(settings, totals, name) for name in MEANS},
            rounding={
                name: StoredRounding(largest=rounding.largest, rms=rounding.rms)
                for name, rounding in sorted(totals.rounding.items())
            },
            devices=dict(sorted(totals.devices.items())),
        )

    def to_json(self) -> dict[str, Any]:
        """The stored object."""
        return {
            "model": {"weights": self.weights, "config": self.model},
            "dtype": self.dtype.value,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "windows": self.windows,
            "statistics": {name: values.to_json() for name, values in self.statistics.items()},
            "rounding": {name: rounding.to_json() for name, rounding in self.rounding.items()},
            "devices": self.devices,
        }

    @staticmethod
    def from_json(fields: Fields) -> LatentsDescription:
        """Raises: FieldError."""
        weights, model = fields.record("model", lambda model: (model.text("weights"), model.mapping("config")))
        dtype = fields.text("dtype")
        if dtype not in tuple(LatentDtype):
            raise fields.wrong("dtype", " or ".join(LatentDtype), dtype)
        shapes = fields.record("shapes", _shapes)
        statistics = fields.record(
            "statistics",
            lambda stored: {
                name: stored.record(name, partial(ChannelStatistics.from_json, channels=shapes[name][0]))
                for name in sorted(MEANS)
            },
        )
        return LatentsDescription(
            weights=weights,
            model=model,
            dtype=LatentDtype(dtype),
            shapes=shapes,
            windows=_windows(fields.mapping("windows")),
            statistics=statistics,
            rounding=fields.record_by_name("rounding", StoredRounding.from_json),
            devices=fields.counts("devices"),
        )
