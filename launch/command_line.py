"""What all scripts share of a command line: parsing, `--help`, a count on one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from trainer.config.loader import config_keys


def help_text(cls: type) -> str:
    """The keys of a configuration class, one a line, for the end of `--help`."""
    rows = list(config_keys(cls))
    width = max(len(f"{key}={default}") for key, _, default, _ in rows)
    lines = ["keys (key=default  type  meaning):"]
    lines += [f"  {f'{key}={default}':<{min(width, 44)}}  {kind:<8}  {note}" for key, kind, default, note in rows]
    return "\n".join(lines)


def config_parser(cls: type, description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser with `--config FILE ...` and trailing `key=value` words whose `--help` lists every key of `cls`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=help_text(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", nargs="+", default=[], metavar="FILE", help="YAML files, later ones win")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over every file")
    return parser


def parse_overrides(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse, letting `key=value` words stand anywhere, also between options and after a multi-valued `--config`."""
    arguments, rest = parser.parse_known_args(argv)
    stray = [word for word in rest if "=" not in word or word.startswith("-")]
    if stray:
        parser.error(f"unrecognized arguments: {' '.join(stray)}")
    files = [word for word in arguments.config if "=" not in word]
    swallowed = [word for word in arguments.config if "=" in word]
    arguments.config, arguments.overrides = files, [*swallowed, *arguments.overrides, *rest]
    return arguments


def counter(what: str) -> Callable[[int], None]:
    """A progress callback that shows `N what` on standard error; the next line printed there overwrites it."""

    def show(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{done} {what}\r", end="", file=sys.stderr, flush=True)

    return show
