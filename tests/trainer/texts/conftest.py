"""An encoder, latents with captions, and the texts of an undisturbed encoding; none of them may be changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.texts import corpus


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.trainer.texts.tiny_encoder import save_encoder  # which skips a test where transformers is missing

    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Latents with captions; the clips are `corpus.CLIPS`."""
    return corpus.save_latents(tmp_path_factory.mktemp("captioned"))


@pytest.fixture(scope="session")
def texts(encoder: Path, captioned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their captions as token embeddings in fp32."""
    folder = tmp_path_factory.mktemp("texts")
    assert corpus.encode_here(corpus.config_of(encoder, captioned, folder, "stored.dtype=fp32")).dataset is not None
    return folder
