"""Which words of a command line are settings and which are files; docs/commands.md states the rule."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from os.path import isfile  # unlike `Path.is_file`, it takes words too long for a name

from trainer.config.typos import hint


def reads_as_setting(word: str) -> bool:
    """Whether a word has the form `key=value`: something without `/` before its first `=`, and no dash in front.

    Whether there is such a key is not asked here. The configuration refuses a key that it does not have by its name.
    """
    return re.match(r"[^-=/][^=/]*=", word) is not None


def one_file_each(argv: Sequence[str], options: Collection[str] = ("--config",)) -> Iterator[str]:
    """`--config A B key=value C` as `--config=A --config=B key=value --config=C`.

    Args:
        options: those that take several files.
    """
    option, first = "", False
    for word in argv:
        if word in options:
            if first:
                yield option
            option, first = word, True
        elif option and not word.startswith("-") and (first or not reads_as_setting(word) or isfile(word)):
            yield f"{option}={word}"
            first = False
        else:
            if first:
                yield option  # argparse says that its file is missing
            option = "" if word.startswith("-") else option
            first = False
            yield word
    if first:
        yield option


def remedy(word: str, known: Sequence[str]) -> str:
    """What to write instead of a word that is neither an option nor a setting.

    Args:
        known: all dotted keys.
    """
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    if word.startswith("-") and key in known:
        return f"a setting is a word without dashes, {key}=VALUE"
    return f"settings are key=value words; {hint(key, known)}"
