"""What lies behind paths that may differ by node is compared, and named by path and digest. Each rank is a thread."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

from trainer.join.contents import Contents, check_same_contents, of_data, of_file
from trainer.join.launch import NotOneRun


def of_both(*each: dict[str, Contents]) -> list[str]:
    """What two ranks are refused with, of which each takes part in every gathering."""
    answers: dict[int, Any] = {}
    barrier = Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as pool:

        def rank(number: int) -> str:
            def gather(value: Any) -> list[Any]:
                answers[number] = value
                barrier.wait()
                found = [answers[0], answers[1]]
                barrier.wait()
                return found

            try:
                check_same_contents(each[number], gather)
            except NotOneRun as error:
                return str(error)
            return ""

        return list(pool.map(rank, (0, 1)))


def test_other_data_behind_two_paths_are_named_by_path_and_digest_and_without_a_list() -> None:
    identity = {"seed": 1, "index": "a" * 64, "snapshots": [{"epoch": 0, "samples": 7}]}
    other = identity | {"index": "b" * 64, "snapshots": [{"epoch": 0, "samples": 8}]}
    named = (("/A", "a"), ("s3://B/x", "b"))
    data = [{"data.shards": of_data(path, one)} for path, one in (("/A", identity), ("s3://B/x", other))]
    line, again = of_both(*data)
    assert line == again
    assert line.startswith("the ranks differ in what must be the same on all of them: data.shards: /A (index aaaa")
    sides = [f"{path} (index {letter * 16}...) on rank {rank}" for rank, (path, letter) in enumerate(named)]
    assert line.endswith(f"{' and '.join(sides)} are other datasets. Give every node the same data and files")
    same = [{"data.shards": of_data(path, identity)} for path in ("/A", "/B")]
    assert of_both(*same) == ["", ""]


def test_a_file_that_only_one_node_has_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    files = [{"loss.lpips_weights": of_file(str(tmp_path / name))} for name in "ab"]
    (line, _) = of_both(*files)
    assert re.search(rf"lpips_weights: {tmp_path}/a \(sha256 [0-9a-f]{{16}}\.\.\.\) on rank 0 and {tmp_path}/b ", line)
    assert f"{tmp_path}/b (sha256 not found) on rank 1 are other files" in line


def test_initial_weights_that_only_one_node_names_end_both_ranks(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    (line, again) = of_both({}, {"init_from": of_file(str(tmp_path / "a"))})
    assert line == again
    assert f"init_from: nothing on rank 0 and {tmp_path}/a (sha256 " in line
    assert " on rank 1 are other files" in line
