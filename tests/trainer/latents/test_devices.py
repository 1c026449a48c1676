"""Two kinds of device on one output: what is committed stays, and latents differ by no more than the stated bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.store.local import LocalStore
from tests.launch.scripts import ROOT
from tests.trainer.latents.corpus import config_of, contents, encode_here
from tests.trainer.latents.test_encoding import samples

BOUND = 1e-5
"""Largest difference of fp32 latents, whose deviation is about 1, as docs/latents.md states it."""
ENCODE = """
import sys
from pathlib import Path
from tests.trainer.latents.corpus import config_of, encode_here
model, shards, output = map(Path, sys.argv[1:])
assert encode_here(config_of(model, shards, output, "stored.dtype=fp32")).dataset is not None
"""


def encode_with(capability: str, model: Path, shards: Path, output: Path) -> None:
    """Encode in a process whose torch uses the instruction set of that name."""
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", ENCODE, str(model), str(shards), str(output)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this processor has one kind alone")
def test_another_kind_of_device_goes_on_within_the_bound(clips: LocalStore, model: Path, tmp_path: Path) -> None:
    output, here = tmp_path / "mixed", tmp_path / "here"
    encode_here(config_of(model, clips.root, here, "stored.dtype=fp32"))
    encode_with("default", model, clips.root, output)
    store, own = LocalStore(output), LocalStore(here)
    for key, sample in samples(own).items():
        tensors, others = (safetensors.torch.load(s["safetensors"]) for s in (sample, samples(store)[key]))
        for name, tensor in tensors.items():
            np.testing.assert_allclose(tensor, others[name], rtol=0, atol=BOUND)
    before = contents(store)
    store.delete("units/000001.json")
    result = encode_here(config_of(model, clips.root, output, "stored.dtype=fp32"))
    assert result.run.done == 1
    after = contents(store)
    kept = [key for key in before if key.startswith(("units/000000", "units/000002", "shards/000000", "shards/000002"))]
    assert len(kept) >= 6
    assert {key: after[key] for key in kept} == {key: before[key] for key in kept}
    assert [read_record(store, unit).latents.device for unit in range(3)] == [  # type: ignore[union-attr]
        "cpu DEFAULT",
        f"cpu {torch.backends.cpu.get_cpu_capability()}",
        "cpu DEFAULT",
    ]
    described = read_dataset(store).latents
    assert described is not None
    assert described.devices == {"cpu DEFAULT": 2, f"cpu {torch.backends.cpu.get_cpu_capability()}": 1}
    assert verify(store).problems == []
