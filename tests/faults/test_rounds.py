"""Two drivers on one output, disturbed: a few rounds of `rounds.py`, each event once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.faults.rounds import EVENTS, Race, play, prepared

pytestmark = pytest.mark.slow
SEEDS = [next(seed for seed in range(100) if random.Random(seed).choice(EVENTS) == event) for event in EVENTS]


@pytest.fixture(scope="module", params=["build", "encode"])
def race(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Race:
    return prepared(tmp_path_factory.mktemp("race") / "inputs", request.param)


@pytest.mark.parametrize("seed", SEEDS, ids=EVENTS)
def test_two_drivers_make_what_one_makes(seed: int, race: Race, tmp_path: Path) -> None:
    play(race, tmp_path / "round", seed)
