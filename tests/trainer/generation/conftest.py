"""One small corpus for all tests of measuring generated clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainer.generation.toys import make_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `model`, `shards` and `latents`; not to be changed."""
    return make_corpus(tmp_path_factory.mktemp("generation"))
