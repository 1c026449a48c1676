"""The row of the paper for generated video, and in what a measurement differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

GFVD_ON_UCF101 = {"TATS": 332.0, "MAGVIT-v2": 58.0, "Video-LaViT": 275.0, "VidTwin": 193.0}
"""gFVD on UCF-101, as the VidTwin paper (arXiv 2412.17726) lists it. Lower is better."""
_CLASSES, _FRAMES, _SIDE, _GUIDANCE, _STEPS = 101, 16, 224, 5.0, 50
_UNSAID = (
    "the paper does not say how many clips of which split it compares with, nor whether its classes are balanced, nor "
    "which file computes its features"
)


def paper_row(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's values and the differences of a protocol from what the paper says of its own.

    Args:
        protocol: of `trainer/generation/protocol.py`, as JSON has it.
    Returns:
        `source`, `gfvd` (method -> value) and `differences`, each in words.
    """
    generated, real = protocol["generated"], protocol["real"]
    stated = [
        ("classes", _CLASSES, len(real["per_class"])),
        ("frames", _FRAMES, protocol["frames"]),
        ("size in pixels", _SIDE, protocol["image_size"]),
        ("guidance", _GUIDANCE, generated["guidance"]),
        ("steps of the sampler", _STEPS, generated["steps"]),
    ]
    differences = [f"{name}: paper {theirs:g}, here {ours}" for name, theirs, ours in stated if ours != theirs]
    return {
        "source": "arXiv 2412.17726, generation on UCF-101",
        "gfvd": GFVD_ON_UCF101,
        "differences": [f"data: paper UCF-101, here {real['shards']}", *differences, _UNSAID],
    }
