"""The protocol of a Frechet distance of clips: all that the value depends on, apart from what the clips show.

The protocol stands beside every value.

`fvd2048_16f` is the protocol of StyleGAN-V (Skorokhodov et al. 2022), by which most papers measure FVD since: 2048
real and 2048 generated clips of 16 neighbouring frames, one real clip at a random place of each of the first 2048
videos that are long enough, features of the Kinetics-400 I3D, and covariances that are divided by the number of clips.
Here the other clips are reconstructions of the same 2048 clips, because reconstructions are what is measured. The
published program draws other places each time, and here the seed decides them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from data_pipeline.store.counted import counted
from trainer.evaluation.draws import Draw


@dataclass(frozen=True, kw_only=True)
class FrechetPreset:
    """A published protocol.

    Attributes:
        name: as papers call it.
        clips: in each of the two sets.
        frames: of a clip.
        stride: frames of the video from one frame of a clip to the next.
        population: whether covariances are divided by the number of clips, and not by one less.
        seed: decides the places at which clips are drawn.
        differs: what differs from the published protocol in any case.
    """

    name: str
    clips: int
    frames: int
    stride: int
    population: bool
    seed: int
    differs: str

    @property
    def draw(self) -> Draw:
        """How the real clips are drawn."""
        return Draw(self.clips, self.seed)

    def check_inputs(self, frames: int, items: int, what: str, *, allow_few: bool) -> None:
        """Refuse windows that the protocol cannot be made of, before the first one is read.

        Args:
            frames: of a window.
            items: number of videos, or of stored clips, of which one clip each would be drawn.
            what: such an item, in the singular.
            allow_few: take fewer clips than the protocol asks for.
        Raises:
            ValueError: frames or items do not suffice; the message has the remedy.
        """
        if frames != self.frames:
            raise ValueError(
                f"{self.name} measures clips of {self.frames} frames, and here a window has {frames}; name a model of "
                f"{self.frames} frames, or leave the protocol away"
            )
        if items < self.clips and not allow_few:
            raise ValueError(
                f"{self.name} takes one clip of each of {self.clips} {what}s of {frames} frames or more, and finds "
                f"{counted(items, what)}; name more, or give --few-clips for a value that compares with no other"
            )


FVD2048_16F = FrechetPreset(
    name="fvd2048_16f",
    clips=2048,
    frames=16,
    stride=1,
    population=True,
    seed=0,
    differs="the other clips are reconstructions of the same ones",
)
PRESETS = {preset.name: preset for preset in (FVD2048_16F,)}


@dataclass(frozen=True, kw_only=True)
class FrechetProtocol:
    """What one distance was computed from.

    Attributes:
        metric: name of the metric.
        real, fake: numbers of clips in the two sets.
        frames: number of frames of a clip.
        stride: frames of the source from one frame of a clip to the next; None where it differs between sources.
        size: side of a frame in pixels.
        split: the split of the real clips; "" where they have none.
        seed: the seed by which clips were drawn; None where all were taken.
        extractor: digest of the feature network.
        preset: the published protocol that was asked for; "" for none.
    """

    metric: str
    real: int
    fake: int
    frames: int
    stride: int | None
    size: int
    split: str
    seed: int | None
    extractor: str
    preset: str = ""

    def to_json(self) -> dict[str, Any]:
        """The protocol as a report has it."""
        return asdict(self)

    def line(self) -> str:
        """The protocol as text, to stand beside the value."""
        parts = [
            f"{counted(self.real, 'real clip')} and {self.fake} others",
            f"{counted(self.frames, 'frame')}, {'each' if self.stride == 1 else self._every()}",
            f"{self.size}x{self.size}",
            f"split {self.split}" if self.split else "no split",
            "all clips" if self.seed is None else f"drawn with seed {self.seed}",
            f"extractor {self.extractor[:12]}",
        ]
        return f"{self._name()}: {', '.join(parts)}"

    def _name(self) -> str:
        """The metric, or the published protocol with what differs from it in any case."""
        if not self.preset:
            return self.metric
        return f"{self.preset}, but {PRESETS[self.preset].differs}"

    def _every(self) -> str:
        return "the rate of each video" if self.stride is None else f"every {self.stride}."

    def check(self, preset: FrechetPreset, *, allow_few: bool) -> None:
        """Hold the protocol against a published one.

        Args:
            allow_few: take fewer clips than it asks for.
        Raises:
            ValueError: something differs; the message names all of it.
        """
        wanted = [
            ("frames of a clip", preset.frames, self.frames),
            ("frames from one to the next", preset.stride, self.stride),
        ]
        if not allow_few or max(self.real, self.fake) > preset.clips:
            wanted += [("real clips", preset.clips, self.real), ("other clips", preset.clips, self.fake)]
        differences = [f"{name}: {theirs}, here {ours}" for name, theirs, ours in wanted if theirs != ours]
        if differences:
            raise ValueError(f"{preset.name} asks for {'; '.join(differences)}")
