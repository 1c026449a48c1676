"""Fixtures every package's tests may ask for, one real S3 server a session; and which files are begun first."""

import gc
from pathlib import Path

import pytest

from tests.data_pipeline.gateway import s3_gateway, s3_uri

__all__ = ["s3_gateway", "s3_uri"]

gc.disable()  # while the tests are collected, see trainer/imports.py

# Files stay in one process, so that whoever gets a long one last works on alone. Longest first, in what they take on
# two cores: the first of these minutes, the last 20 s.
LONGEST = (
    "launch/test_train.py",
    "trainer/test_two_ranks.py",
    "data_pipeline/test_builder.py",
    "launch/test_watching.py",
    "launch/test_demo.py",
    "faults/test_killed.py",
    "faults/test_training.py",
    "trainer/test_curve.py",
    "cluster/test_two_hosts.py",
    "trainer/checkpoint/test_export.py",
    "data_pipeline/test_worker_pool.py",
    "cluster/test_ray.py",
    "trainer/estimate/test_speed.py",
    "benchmarks/test_scale.py",
    "faults/test_orphans.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Longest files first; all others, and the tests of a file, stay in their order."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What the tests have imported stays to the end."""
    gc.freeze()
    gc.enable()
