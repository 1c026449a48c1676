"""Fixtures every package's tests may ask for, one real S3 server a session; and which files are begun first."""

import gc
import signal
from pathlib import Path

import pytest

from tests.data_pipeline.store.gateway import s3_gateway, s3_uri

__all__ = ["s3_gateway", "s3_uri"]

gc.disable()  # while the tests are collected: importing makes no garbage, and the collector would look at all of it

# A file stays in one process, so that whoever gets a long one last works on alone: the long ones come first. Those that
# start several processes of torch keep both cores busy by themselves; each of them comes before files that mostly wait.
FIRST = (
    *("trainer/test_two_ranks.py", "data_pipeline/build/test_builder.py", "data_pipeline/build/test_driver.py"),
    *("data_pipeline/build/test_ray_cluster.py", "faults/test_killed.py"),
    *("launch/test_train.py", "faults/test_s3.py", "cluster/test_ray.py", "data_pipeline/read/test_worker_pool.py"),
    *("data_pipeline/store/test_s3.py", "cluster/test_two_hosts.py"),
    "cluster/test_one_run.py",
    *("trainer/diffusion/test_two_ranks.py", "trainer/test_two_ranks_watched.py", "launch/test_export.py"),
    *("data_pipeline/read/test_storage_trouble.py", "trainer/checkpoint/test_upload.py"),
    *("launch/demo/test_commands.py", "data_pipeline/source/test_fetch.py", "launch/test_demo.py"),
    *("trainer/test_fake_cuda.py", "gpu/test_command.py"),
    *("trainer/estimate/test_memory.py", "trainer/checkpoint/test_export.py", "benchmarks/test_scale.py"),
    *("trainer/estimate/test_speed.py", "trainer/test_curve.py", "data_pipeline/cut/test_sampling.py"),
    *("faults/test_encoding_killed.py", "trainer/latents/test_changed_clips.py", "trainer/latents/test_encoding.py"),
    *("data_pipeline/cut/test_isolate.py", "data_pipeline/read/test_loader.py", "faults/test_orphans.py"),
)


# CI runs the slow tests in so many turns, one of them for each commit: together they take more than two hours.
TURNS = 24


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow-turn", type=int, help=f"of the slow tests only the part N modulo {TURNS} of {TURNS} parts")


def pytest_configure() -> None:
    """A suite started in the background or by nohup ignores Ctrl-C or SIGHUP, and so would what its tests start."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`FIRST` first; all others, and the tests of a file, stay in their order."""
    turn = config.getoption("--slow-turn")
    if turn is not None:  # neighbours stay together, because they share what their file sets up
        slow = [item for item in items if item.get_closest_marker("slow")]
        items[:] = [item for place, item in enumerate(slow) if place * TURNS // len(slow) == turn % TURNS]
    places = {Path(__file__).parent / name: place for place, name in enumerate(FIRST)}
    assert all(file.is_file() for file in places), f"moved: {[str(file) for file in places if not file.is_file()]}"
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What the tests have imported stays to the end."""
    gc.freeze()
    gc.enable()
