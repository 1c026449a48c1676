"""What must be equal on all ranks of a run, as key -> text, and what the ranks say where something differs.

The ranks send each other a digest for each key. They send the texts themselves only for keys that differ.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from data_pipeline.store.base import StoreError
from trainer.config.loader import settings_of
from trainer.config.run import RunConfig
from trainer.engine.start_deepspeed import deepspeed_version
from trainer.join.launch import NotOneRun

T = TypeVar("T")
Gather = Callable[[Any], list[Any]]
"""Gives every rank the value of each rank, in the order of the ranks."""
Groups = list[list[int]]
"""The ranks in groups, each of which agrees on a key."""

PACKAGES = ("data_pipeline", "launch", "model", "trainer")
DIGEST_LETTERS = 16
SHOWN_KEYS, SHOWN_LETTERS = 8, 80  # in a message
NOT_FOUND = "not found"


def equal_texts(config: RunConfig) -> dict[str, str]:
    """What must be equal before the ranks join: the settings, the program, and the versions of torch and DeepSpeed.

    Left out are the settings that may differ by node (`RunConfig.differ_by_node`), and `output`, by which a launch is
    known (launch.py) however the path is written.
    """
    own = {"output", *config.differ_by_node}
    texts = {key: json.dumps(value) for key, value in settings_of(config).items() if key not in own}
    return texts | {"program": program_digest()} | versions()


def versions() -> dict[str, str]:
    """The releases of the two libraries whose collective calls must fit together."""
    return {"torch": str(torch.__version__), "DeepSpeed": deepspeed_version()}


@cache
def program_digest() -> str:
    """`digest_of_packages` of this program, as it was at the first call in a process."""
    return digest_of_packages(Path(__file__).parents[2])


def digest_of_packages(root: Path) -> str:
    """SHA-256 over the names and bytes of all Python files of the four packages below `root`."""
    found = hashlib.sha256()
    files = [file.relative_to(root) for package in PACKAGES for file in (root / package).rglob("*.py")]
    for file in sorted(files, key=Path.as_posix):
        data = (root / file).read_bytes()
        found.update(f"{file.as_posix()}\n{len(data)}\n".encode() + data)
    return found.hexdigest()


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or over the names and digests of the files in a directory; `NOT_FOUND` for neither."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())
        listed = "".join(f"{file.name}\n{content_digest(file)}\n" for file in files)
        return hashlib.sha256(listed.encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return NOT_FOUND  # where all nodes lack the file, the code that needs it refuses that with the remedy


def digests(texts: Mapping[str, str]) -> dict[str, str]:
    """Key -> the beginning of the SHA-256 of its text."""
    return {key: hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LETTERS] for key, text in texts.items()}


def differences(by_rank: Sequence[Mapping[str, str]]) -> dict[str, Groups]:
    """The keys whose digests differ, each with the groups of ranks that agree; the group of the lowest rank first.

    Args:
        by_rank: each rank's digests; a key that a rank lacks counts as a difference.
    """
    found = {}
    for key in dict.fromkeys(key for one in by_rank for key in one):
        groups: dict[str | None, list[int]] = {}
        for rank, one in enumerate(by_rank):
            groups.setdefault(one.get(key), []).append(rank)
        if len(groups) > 1:
            found[key] = list(groups.values())
    return found


def speakers(differing: Mapping[str, Groups]) -> list[int]:
    """The ranks whose texts a message needs: the first rank of each group."""
    return sorted({group[0] for groups in differing.values() for group in groups})


def described(differing: Mapping[str, Groups], texts: Mapping[int, Mapping[str, str]]) -> str:
    """One line that names the keys, the ranks and their texts, with the remedy.

    Args:
        differing: from `differences`.
        texts: of the `speakers`, by rank.
    """
    parts = []
    for key, groups in list(differing.items())[:SHOWN_KEYS]:
        sides = [f"{_shown(texts.get(group[0], {}).get(key))} on {named_ranks(group)}" for group in groups]
        parts.append(f"{key} is {', '.join(sides)}")
    more = len(differing) - len(parts)
    return (
        f"the ranks differ in what must be the same on all of them: {'; '.join(parts)}"
        f"{f'; and {more} more keys' if more else ''}. Give every node the same command, configuration files, data, "
        "program and libraries"
    )


def _shown(text: str | None) -> str:
    return "not there" if text is None else shortened(text)


def shortened(text: str) -> str:
    """A text as a message shows it; of a SHA-256 fewer letters."""
    letters = DIGEST_LETTERS if re.fullmatch("[0-9a-f]{64}", text) else SHOWN_LETTERS
    return text if len(text) <= letters else f"{text[:letters]}..."


def named_ranks(ranks: Iterable[int]) -> str:
    """`rank 3`, or `ranks 0-7, 9`; `ranks` ascend."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][1] == rank - 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    listed = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"rank {listed}" if listed.isdigit() else f"ranks {listed}"


def check_equal(texts: Mapping[str, str], gather: Gather) -> None:
    """Compare with the other ranks. Every rank calls it.

    Args:
        texts: this rank's.
        gather: between the ranks, which have joined.
    Raises:
        NotOneRun: something differs; raised on every rank, with the same message.
    """
    differing = differences(gather(digests(texts)))
    if differing:
        shown = gather({key: texts[key] for key in differing if key in texts})
        raise NotOneRun(described(differing, dict(enumerate(shown))))


def on_all(work: Callable[[], T], gather: Gather) -> T:
    """Do what may fail on some ranks only, and fail on all ranks then. Every rank calls it.

    Args:
        work: calls no other rank.
        gather: between the ranks, which have joined.
    Raises:
        ValueError: `work` raised one, on this rank or on another.
        StoreError: the same.
    """
    done: list[T] = []
    own: ValueError | StoreError | None = None
    try:
        done.append(work())
    except (ValueError, StoreError) as error:
        own = error
    failures = gather(None if own is None else (isinstance(own, StoreError), str(own)))
    if own is not None:
        raise own
    failed = [other for other, failure in enumerate(failures) if failure is not None]
    if failed:
        of_store, text = failures[failed[0]]
        raise (StoreError if of_store else ValueError)(f"{named_ranks(failed)}: {text}")
    return done[0]
