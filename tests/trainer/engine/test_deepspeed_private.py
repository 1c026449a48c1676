"""The private parts of DeepSpeed that `deepspeed_private.py` uses still do what they are used for.

One rank looks at them (private_parts.py); tests/trainer/checkpoint/test_reshard.py has them on several ranks.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.tools import warm

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("private") / "found.json"
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = ["-m", "tests.trainer.engine.private_parts", str(file)]
    done = warm.run(command, environment=environment, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


@pytest.mark.parametrize("case", ["0 bf16", "1 fp32", "2 fp32", "3 fp32", "3 bf16"])
def test_masters_are_found_set_and_published_and_moments_forgotten(found: dict[str, Any], case: str) -> None:
    assert found["cases"][case] == {
        "shapes": True,
        "masters are the weights": True,
        "published": True,
        "forgotten": True,
        "counts": [1.0],  # Adam counts from the start again
        "steps": 8,
    }


def test_the_loss_scale_of_fp16_stops_falling_and_the_run_goes_on(found: dict[str, Any]) -> None:
    assert found["scales"] == [[2.0**-16, 0.0]] * 2


def test_the_shared_memory_extension_is_not_built(found: dict[str, Any]) -> None:
    assert found["no extension"]
