"""The undisturbed build that every disturbed one is compared with."""

from __future__ import annotations

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
    """Sixteen sources in sixteen units."""
    folder = tmp_path_factory.mktemp("undisturbed")
    source = builds.write_videos(folder / "videos", 16)
    output = folder / "output"
    builds.build(builds.build_command(source, output, "run.cpus=2"), folder / "log")
    fingerprint = builds.fingerprint(output)
    assert len([key for key in fingerprint if key.startswith("shards/")]) == 9, (
        "the sources gave other clips than planned"
    )
    builds.assert_same_and_proven(output, fingerprint)
    return Undisturbed(source, output, fingerprint)
