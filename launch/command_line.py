"""What all scripts share of a command line: options, `key=value` words, `--help`, a count on one line.

A script parses its words first and imports what computes afterwards. docs/commands.md is the page for users.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from data_pipeline.outside.console import write_over
from launch.exit_status import REFUSED, complain, script_name, show_help
from launch.help_text import keys_help
from launch.option_types import Once, place
from launch.words import one_file_each, reads_as_setting, remedy
from trainer.config.loader import default_values

if TYPE_CHECKING:
    from _typeshed import SupportsWrite


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, printed once a node, and no guessing: of shortened or repeated options."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)
        self.register("action", None, Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as argparse does, but refuse an empty word, because as a path it would mean the current folder.

        A NUL byte is refused as well, because no path can hold one.
        """
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            if word == "" or re.fullmatch("--[a-z-]+=", word):
                self.error(f"argument {word.rstrip('=') or before}: is empty; name something, or leave it away")
            if "\0" in word:
                named = word.partition("=")[0] if re.match("--[a-z-]+=", word) else before
                self.error(f"argument {named}: {word!r} holds a NUL byte; remove it")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Print `SCRIPT: message` and exit with status 2."""
        complain(self.prog, message if message.endswith("?") else f"{message}; --help says what is understood")
        raise SystemExit(REFUSED)

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        """Print the help. argparse's own method ends with status 0, and says nothing, where it cannot print."""
        assert file is None, "--help prints to standard output"
        show_help(self.prog, self.format_help())


def script_parser(file: str, description: str | None) -> Parser:
    """The parser of the script `file`, described by its docstring."""
    return Parser(prog=script_name(file), description=description)


def config_parser(cls: type, file: str, description: str | None, *, files: bool = True) -> Parser:
    """A parser with `--config FILE ...`, `key=value` words, and a `--help [WORD ...]` that lists the keys of `cls`.

    Args:
        cls: the configuration's dataclass.
        file, description: of the script, as above.
        files: False for a script that reads its own configuration files.
    """
    parser = Parser(
        prog=script_name(file), description=description, usage="%(prog)s [options] [key=value ...]", add_help=False
    )
    section = next((key.partition(".")[0] for key in default_values(cls) if "." in key), "")
    parser.add_argument(
        "-h",
        "--help",
        action=_Help,
        nargs="*",
        keys_of=cls,
        metavar="WORD",
        help=f"show this; with a section, or a part of a key's name or meaning, only these keys: `--help {section}`",
    )
    if files:
        parser.add_argument(
            "--config",
            action="append",
            type=place,
            default=[],
            metavar="FILE [FILE ...]",
            help="YAML files, later ones win",
        )
    parser.set_defaults(keys_of=cls)
    return parser


class _Help(argparse.Action):
    def __init__(self, *, keys_of: type, **options: Any) -> None:
        super().__init__(**options)
        self.keys_of = keys_of

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: object, values: Any, option: str | None = None
    ) -> None:
        asked = [word for word in values if "=" not in word] or values  # settings may stand behind `--help SECTION`
        try:
            keys = keys_help(self.keys_of, asked)
        except ValueError as error:
            parser.error(f"--help {' '.join(values)}: {error}")
        show_help(parser.prog, keys if values else f"{parser.format_help()}\n{keys}")
        parser.exit()


def parse_overrides(
    parser: Parser, argv: Sequence[str] | None = None, *, several: Collection[str] = ("--config",)
) -> argparse.Namespace:
    """Parse a command line of options and `key=value` words, which may stand anywhere and keep their order.

    The word after `--config` is a file whatever it looks like. Of the words that follow it, one that reads as
    `key=value` (see `words.py`) is a setting unless a file of that name exists, and all others are files. `--config`
    may be given several times.

    Args:
        several: the options that take files in this way.
    Returns:
        The options, with the files in `config` and the words in `overrides`.
    """
    arguments, words = parser.parse_known_args(one_file_each(sys.argv[1:] if argv is None else argv, several))
    for word in words:
        if not reads_as_setting(word):
            known = list(default_values(parser.get_default("keys_of")))
            parser.error(f"{word!r} is not understood; {remedy(word, known)}")
    arguments.overrides = words
    return arguments


def counter(what: str) -> Callable[[int], None]:
    """A progress callback that shows `N what` on standard error; the next line printed there overwrites it."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            write_over(sys.stderr, f"{done} {what}", end="\r")
            sys.stderr.flush()

    return show
