"""What is compared between ranks, and how a difference is named. Digests are held against the command `sha256sum`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipeline.store.base import StoreError
from tests.trainer.cases import tiny_config
from trainer.config.loader import to_yaml
from trainer.join import equality
from trainer.join.equality import (
    NOT_FOUND,
    check_equal,
    content_digest,
    described,
    differences,
    digest_of_packages,
    digests,
    equal_texts,
    named_ranks,
    on_all,
    speakers,
)
from trainer.join.launch import NotOneRun


def sha256sum(*files: Path) -> list[str]:
    done = subprocess.run(["sha256sum", *map(str, files)], capture_output=True, text=True, check=True, timeout=60)
    return [line.split()[0] for line in done.stdout.splitlines()]


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_every_setting_is_compared_but_those_of_a_nodes_own_disk(tmp_path: Path) -> None:
    one = tiny_config(str(tmp_path / "run"))
    texts = equal_texts(one)
    keys = set(leaves(yaml.safe_load(to_yaml(one))))
    own = {"init_from", "data.shards", "data.cache_dir", "data.cache_bytes", "loss.lpips_weights", "validation.fvd"}
    assert texts.keys() == keys - own - {"output"} | {"program", "torch", "DeepSpeed"}
    assert len(texts) > 100
    elsewhere = replace(
        one,
        init_from="/a",
        data=replace(one.data, shards="/b", cache_dir="/c", cache_bytes=5),
        loss=replace(one.loss, lpips_weights="/d"),
    )
    assert equal_texts(elsewhere) == texts
    other = replace(one, steps=7, telemetry=replace(one.telemetry, log_every=3))
    assert differences([digests(texts), digests(equal_texts(other))]) == {
        "steps": [[0], [1]],
        "telemetry.log_every": [[0], [1]],
    }


def test_the_program_is_its_python_files_and_their_names(tmp_path: Path) -> None:
    for package in equality.PACKAGES:
        (tmp_path / package / "part").mkdir(parents=True)
        (tmp_path / package / "part" / "code.py").write_text("x = 1\n")
    first = digest_of_packages(tmp_path)
    (tmp_path / "model" / "notes.txt").write_text("not a program")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test.py").write_text("")
    assert digest_of_packages(tmp_path) == first
    (tmp_path / "launch" / "part" / "code.py").write_text("x = 2\n")
    changed = digest_of_packages(tmp_path)
    (tmp_path / "launch" / "part" / "code.py").rename(tmp_path / "launch" / "code.py")
    assert len({first, changed, digest_of_packages(tmp_path)}) == 3


def test_contents_are_compared_under_whatever_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.yaml").write_text("width: 3\n")
    file = tmp_path / "a" / "model.safetensors"
    assert [content_digest(file)] == sha256sum(file)
    assert content_digest(tmp_path / "a") == content_digest(tmp_path / "b")
    (tmp_path / "b" / "config.yaml").write_text("width: 4\n")
    assert content_digest(tmp_path / "a") != content_digest(tmp_path / "b")
    assert content_digest(tmp_path / "c") == NOT_FOUND


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([3], "rank 3"), ([0, 1, 2, 3], "ranks 0-3"), ([0, 2, 3, 4, 9], "ranks 0, 2-4, 9"), ([5, 6], "ranks 5-6")],
)
def test_ranks_are_named_in_spans(ranks: list[int], words: str) -> None:
    assert named_ranks(ranks) == words


def test_a_difference_names_key_ranks_and_texts() -> None:
    texts = [{"lr": "0.003", "seed": "1"}] * 8 + [{"lr": "0.0003", "seed": "1"}] * 7 + [{"lr": "0.1"}]
    differing = differences([digests(one) for one in texts])
    assert differing == {"lr": [[*range(8)], [*range(8, 15)], [15]], "seed": [[*range(15)], [15]]}
    assert speakers(differing) == [0, 8, 15]
    line = described(differing, {rank: texts[rank] for rank in speakers(differing)})
    assert "lr is 0.003 on ranks 0-7, 0.0003 on ranks 8-14, 0.1 on rank 15; " in line
    assert "seed is 1 on ranks 0-14, not there on rank 15" in line


def test_of_many_and_long_differences_the_first_are_shown() -> None:
    texts = [{f"key{number}": side * 200 for number in range(20)} for side in "ab"]
    differing = differences([digests(one) for one in texts])
    line = described(differing, dict(enumerate(texts)))
    assert f"key7 is {'a' * 80}... on rank 0, {'b' * 80}... on rank 1; and 12 more keys. Give every node" in line
    assert "key8" not in line
    contents = [{"program": sha256} for sha256 in ("a" * 64, "b" * 64)]
    line = described({"program": [[0], [1]]}, dict(enumerate(contents)))
    assert f"program is {'a' * 16}... on rank 0, {'b' * 16}... on rank 1. Give" in line


def others_say(*theirs: Any) -> Callable[[Any], list[Any]]:
    """A gathering in which this rank is the first and the others say the same each time."""
    return lambda own: [own, *theirs]


def test_ranks_that_agree_go_on_and_others_all_end() -> None:
    own = {"the dataset's index": "aa"}
    check_equal(own, others_say(digests(own)))
    answers = iter([[digests(own), digests({"the dataset's index": "bb"})], [own, {"the dataset's index": "bb"}]])
    with pytest.raises(NotOneRun, match="the dataset's index is aa on rank 0, bb on rank 1"):
        check_equal(own, lambda value: next(answers))


@pytest.mark.parametrize(("of_store", "kind"), [(False, ValueError), (True, StoreError)])
def test_what_fails_on_one_rank_fails_on_all(of_store: bool, kind: type[Exception]) -> None:
    assert on_all(lambda: 5, others_say(None, None)) == 5
    with pytest.raises(kind, match="ranks 1-2: no such dataset"):
        on_all(lambda: 5, others_say((of_store, "no such dataset"), (of_store, "no such dataset")))

    def fails() -> int:
        raise kind("here")

    with pytest.raises(kind, match=r"^here$"):
        on_all(fails, others_say((of_store, "there")))
