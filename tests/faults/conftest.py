"""The undisturbed build that every disturbed one is compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import builds


@dataclass(frozen=True)
class Undisturbed:
    """A manifest with its videos beside it, and the dataset that it gives when nothing goes wrong."""

    source: Path
    output: Path
    fingerprint: dict[str, str]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Sixteen sources in sixteen units; nine give clips, two of which are near-duplicates of others.

    One process builds it without Ray, so that the builds that are disturbed are held against another way as well.
    """
    folder = tmp_path_factory.mktemp("undisturbed")
    source = builds.write_videos(folder / "videos", 16)
    output = folder / "output"
    builds.build_here(source, output)
    fingerprint = builds.fingerprint(output)
    clips = json.loads((output / "dataset.json").read_text())["clips"]
    assert (clips["committed"], clips["rejected"]["near_duplicate"]) == (7, 2), "other clips than planned"
    builds.assert_same_and_proven(output, fingerprint)
    return Undisturbed(source, output, fingerprint)
