"""The keys of a configuration class for a terminal: by section, wrapped, and only those that a word asks for."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence

from trainer.config.keys import config_keys, config_sections
from trainer.config.typos import nearest_keys

INDENT, COLUMN = 2, 34
"""Where a key begins, and where its meaning does."""
NO_BREAK = "\N{NO-BREAK SPACE}"


def keys_help(cls: type, wanted: Sequence[str] = (), width: int | None = None) -> str:
    """The keys of a configuration class, section by section, each with default, type and meaning.

    Args:
        wanted: sections (`gan`, `model.structure`), parts of keys' names (`lr`) or words of their meanings
            (`st_lpips`); none = everything.
        width: columns of the terminal; None = as many as it has.
    Raises:
        ValueError: no section and no key has one of these names; the message says which are near.
    """
    width = max(60, width or shutil.get_terminal_size().columns)
    rows = list(config_keys(cls))
    meanings = {key: f"{kind} {note}".lower() for key, kind, _, note in rows}
    chosen = {key for word in wanted for key in _asked_for(word, meanings)}
    titles = config_sections(cls)
    lines = [] if wanted else ["settings, as key=value words or in a --config file (key=default, type, meaning):"]
    section = None
    for key, kind, default, note in rows:
        if wanted and key not in chosen:
            continue
        if section != (section := key.rpartition(".")[0]):
            lines += ["", *textwrap.wrap(f"{section}: {titles[section]}" if section else titles[section], width)]
        lines += _entry(f"{key}={default}", f"{note}  ({kind})", width)
    return "\n".join(lines).strip("\n")


def _asked_for(word: str, meanings: Mapping[str, str]) -> list[str]:
    """The keys of a section, else those with the word in their names, else those with it in their meanings."""
    word, known = word.partition("=")[0].lower(), list(meanings)
    if inside := [key for key in known if key == word or key.startswith(f"{word}.")]:
        return inside
    if parts := [key for key in known if word in key]:
        return parts
    if told := [key for key in known if re.search(rf"\b{re.escape(word)}\b", meanings[key])]:
        return told
    near = nearest_keys(word, known) or nearest_keys(word, sorted({key.partition(".")[0] for key in known}))
    raise ValueError(
        f"no section and no key is named so; did you mean {' or '.join(near)}?"
        if near
        else "no key has it in its name or meaning"
    )


def _entry(setting: str, meaning: str, width: int) -> list[str]:
    """A setting, and its meaning from `COLUMN` on: beside it where there is room, else below."""
    whole = re.sub(r"\[[^\]]*\]", lambda match: match[0].replace(" ", NO_BREAK), meaning)  # a range stays on one line
    wrapped = textwrap.wrap(whole, width - COLUMN, break_long_words=False, break_on_hyphens=False)
    lines = [line.replace(NO_BREAK, " ") for line in wrapped]
    indented = [" " * COLUMN + line for line in lines]
    head = " " * INDENT + setting
    return [head.ljust(COLUMN) + lines[0], *indented[1:]] if len(head) < COLUMN - 1 else [head, *indented]
