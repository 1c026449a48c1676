"""One dataset of clips, one model and the latents of an undisturbed encoding; none of them may be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.store.local import LocalStore
from model.vidtwin import VidTwin
from tests.trainer.latents import corpus


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return corpus.build_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def latents(clips: LocalStore, model: Path, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    """Means in fp16 of windows side by side, encoded in this process."""
    store = LocalStore(tmp_path_factory.mktemp("latents"))
    assert corpus.encode_here(corpus.config_of(model, clips.root, store.root)).dataset is not None
    return store


@pytest.fixture(scope="module")
def network(model: Path) -> VidTwin:
    """The model of `model`."""
    return VidTwin.from_pretrained(model)
