"""A tiny model and videos whose frames say their own number."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.vidtwin import VidTwin
from trainer.evaluation.pictures import VideoWriter

MakeRamp = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_model() -> VidTwin:
    torch.manual_seed(0)
    config = VidTwinConfig(
        frames=4, image_size=32, patch_size=8, width=32, depth=1, heads=2,
        structure=StructureConfig(
            queries=4, query_width=16, query_heads=2, query_layers=2, query_hidden=16, conv_width=8
        ),
        dynamics=DynamicsConfig(channels=4),
    )  # fmt: skip
    return VidTwin(config).eval()


@pytest.fixture
def tiny_model_directory(tiny_model: VidTwin, tmp_path: Path) -> Path:
    tiny_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def grey_ramp() -> MakeRamp:
    def make(path: Path, frames: int, fps: float, step: int = 4) -> Path:
        """Frame k is uniformly grey with value step*k."""
        with VideoWriter(path, Fraction(fps).limit_denominator(1001)) as writer:
            for k in range(frames):
                writer.write(np.full((48, 64, 3), step * k, dtype=np.uint8))
        return path

    return make
