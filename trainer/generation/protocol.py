"""Which clips are compared with which, and all else that a distance depends on: without it a gFVD says nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.store.counted import counted
from trainer.evaluation.catalogue import FeatureNetwork
from trainer.generation.real_clips import RealClips, Window
from trainer.generation.samples import Samples, some_of_each


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The two sets of clips.

    Attributes:
        samples: generated.
        real: windows of real clips.
        split: of the real ones.
        left_out: real windows of classes that no sample has.
    """

    samples: Samples
    real: list[Window]
    split: str
    left_out: int

    @property
    def balanced(self) -> bool:
        """Whether both sets have the same classes, and each set as many clips of one class as of another."""
        counts = [Counter(item.label for item in self.samples.items), Counter(window.label for window in self.real)]
        return counts[0].keys() == counts[1].keys() and all(len(set(found.values())) == 1 for found in counts)


def choose(samples: Samples, clips: RealClips, split: str, per_class: int | None) -> Comparison:
    """Choose what is compared: all clips of the samples' classes, or `per_class` of each class.

    Raises:
        ValueError: there is no real clip of these classes, a class has fewer clips than wanted, or a clip is not
            in the shards.
    """
    windows = clips.windows(split)
    if not windows:
        known = ", ".join(sorted(clips.splits())) or "none"
        raise ValueError(f"--split {split}: --latents has no sample of this split; its splits are {known}")
    wanted = set(samples.classes)
    real = [window for window in windows if not wanted or window.label in wanted]
    if missing := sorted(wanted - {window.label for window in real}):
        raise ValueError(
            f"--split {split} has no clip of the class {missing[0]!r}, which --samples {samples.folder} has "
            f"({counted(len(missing), 'class', 'classes')} without real clips); choose another split, or samples of "
            "other classes"
        )
    left_out = len(windows) - len(real)
    if per_class is not None:
        if not wanted:
            raise ValueError(f"--per-class chooses among classes, and --samples {samples.folder} has none")
        samples = samples.balanced(per_class)
        real = some_of_each([(window.label, window) for window in real], per_class, f"--split {split}")
    clips.find(real)
    return Comparison(samples=samples, real=real, split=split, left_out=left_out)


def describe(chosen: Comparison, clips: RealClips, networks: Sequence[FeatureNetwork], decoder: str) -> dict[str, Any]:
    """The protocol as JSON has it.

    Args:
        networks: those that look at the clips.
        decoder: digest of the weights of the model that decodes.
    """
    settings, config = chosen.samples.settings, clips.config
    return {
        "real": {
            "shards": clips.shards,
            "split": chosen.split,
            "windows": len(chosen.real),
            "per_class": _counts([window.label for window in chosen.real]),
            "left_out": chosen.left_out,
        },
        "generated": {
            "folder": str(chosen.samples.folder),
            "samples": len(chosen.samples.items),
            "per_class": _counts([item.label for item in chosen.samples.items]),
            **{key: settings.get(key) for key in ("weights", "seed", "steps", "guidance")},
        },
        "balanced": chosen.balanced,
        "frames": config.frames,
        "frame_stride": config.frame_stride,
        "fps": float(clips.fps),
        "image_size": config.image_size,
        "resize": config.resize,
        "decoder": decoder,
        "networks": {network.name: network.digest for network in networks},
    }


def lines(protocol: dict[str, Any]) -> list[str]:
    """The protocol as text."""
    real, made = protocol["real"], protocol["generated"]
    size = protocol["image_size"]
    resized = f", short side scaled to {protocol['resize']} first" if protocol["resize"] else ""
    return [
        f"real       {real['shards']}, split {real['split']}: {counted(real['windows'], 'window')}, {_range(real)}"
        + (f"; {real['left_out']} of other classes left out" if real["left_out"] else ""),
        f"generated  {made['folder']}: {counted(made['samples'], 'sample')}, {_range(made)}; seed {made['seed']}, "
        f"{made['steps']} steps, guidance {made['guidance']}, weights {str(made['weights'])[:12]}",
        f"classes    {_balance(protocol)}",
        f"clips      {protocol['frames']} frames at {protocol['fps']:g} a second (every {protocol['frame_stride']}. "
        f"stored frame), {size} x {size} from the middle{resized}",
        f"decoder    {protocol['decoder'][:12]}",
        *(f"network    {name} {digest[:12]}" for name, digest in protocol["networks"].items()),
    ]


def _counts(labels: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(labels).items()))


def _balance(protocol: dict[str, Any]) -> str:
    if "" in protocol["generated"]["per_class"]:
        return "the samples have none"
    words = "balanced" if protocol["balanced"] else "not balanced; --per-class N balances them"
    return words + ("; some classes of the real clips have no sample" if protocol["real"]["left_out"] else "")


def _range(part: dict[str, Any]) -> str:
    counts = part["per_class"]
    if list(counts) == [""]:
        return "without classes"
    least, most = min(counts.values()), max(counts.values())
    each = f"{least}" if least == most else f"{least} to {most}"
    return f"{counted(len(counts), 'class', 'classes')}, {each} of each"
