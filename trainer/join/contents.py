"""What lies behind paths that may differ by node: the same must lie there on every node, whatever its path."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.join.equality import Gather, content_digest, differences, digests, named_ranks, shortened
from trainer.join.launch import NotOneRun


@dataclass(frozen=True)
class Contents:
    """What a setting names on this node.

    Attributes:
        path: of this node, or an address; empty where no setting says it.
        facts: name of a property -> its value, all of which must be equal.
        kind: a plural, for messages: these are other `kind`.
    """

    path: str
    facts: Mapping[str, str]
    kind: str

    def shown(self, fact: str) -> str:
        """The path and one fact, for messages."""
        place = self.path if not self.path or "://" in self.path else os.path.abspath(self.path)
        return f"{place} ({fact} {shortened(self.facts.get(fact, 'not there'))})".lstrip()


def of_file(path: str) -> Contents:
    """A file or a directory of files."""
    return Contents(path, {"sha256": content_digest(Path(path))}, "files")


def of_data(path: str, identity: Mapping[str, Any]) -> Contents:
    """What a loader reads; `identity` is the loader's."""
    facts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in identity.items()}
    return Contents(path, facts, "datasets")


def check_same_contents(named: Mapping[str, Contents], gather: Gather) -> None:
    """Compare with the other ranks. Every rank calls it.

    Args:
        named: the setting, or a name where there is none -> what it names on this node.
        gather: between the ranks, which have joined.
    Raises:
        NotOneRun: something differs; raised on every rank, with the same message.
    """
    by_rank = gather({key: digests(contents.facts) for key, contents in named.items()})
    parts = []
    for key in dict.fromkeys(key for one in by_rank for key in one):  # init_from may be set on some nodes only
        differing = differences([one.get(key, {}) for one in by_rank])
        if not differing:
            continue
        fact, groups = next(iter(differing.items()))
        own = named.get(key)
        sides = gather((own.shown(fact), own.kind) if own is not None else ("nothing", ""))
        kind = next(kind for _, kind in sides if kind)
        parts.append(f"{key}: {_sides([shown for shown, _ in sides], groups)} are other {kind}")
    if parts:
        raise NotOneRun(
            f"the ranks differ in what must be the same on all of them: {'; '.join(parts)}. Give every node the same "
            "data and files"
        )


def _sides(shown: Sequence[str], groups: Sequence[Sequence[int]]) -> str:
    return " and ".join(f"{shown[group[0]]} on {named_ranks(group)}" for group in groups)
