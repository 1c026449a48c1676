"""How scripts end: refusals of one line, the exit statuses, and requests to stop. docs/commands.md has the table."""

from __future__ import annotations

import errno
import functools
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipeline.outside.console import guard_consoles, visible
from data_pipeline.outside.redaction import redacted
from data_pipeline.outside.regular import NotRegular
from launch.stop_signals import signals_raise

DONE, FAILED, REFUSED = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT

# Errors of the system that the same command meets again, because a path in it is wrong.
_WRONG_PATH = (
    *(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, FileExistsError),
    NotRegular,
)
Main = Callable[..., int]  # the command line, or None for the process's own, to an exit status


def script_name(file: str) -> str:
    """A script's name in usage and messages: `launch/train.py`, and `launch.demo` for the package."""
    path = Path(file)
    return f"launch.{path.parent.name}" if path.name == "__main__.py" else f"launch/{path.name}"


HEARD_S = 4.0
"""How much longer the ranks stay that do not speak, in seconds."""


def complain(script: str, message: object) -> None:
    """Print one line `SCRIPT: message` on standard error, where several ranks of a node run the same script only once.

    Every node speaks, because what one refuses another may not. A rank that does not speak stays for `HEARD_S`: a
    launcher ends all ranks when it sees that one has ended, and by then the rank that speaks must have spoken.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(visible(redacted(f"{script}: {' '.join(str(message).split())}")), file=sys.stderr, flush=True)
    else:
        time.sleep(HEARD_S)


def status_of(error: ValueError | OSError) -> int:
    """2 for what is wrong with the command, 1 for a trouble of the machine or a store that may pass."""
    wrong = isinstance(error, (ValueError, *_WRONG_PATH)) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    return REFUSED if wrong else FAILED


def ends_with_status(main: Main) -> Main:
    """Turn a script's `main` into one that never raises for a refusal, a failed store, or a request to stop.

    ValueError and OSError become one line and `status_of`; Ctrl-C, SIGTERM and SIGHUP let the script clean up first,
    and become 128 + their number; what argparse ends with is returned as well.
    """
    script = script_name(main.__code__.co_filename)

    @functools.wraps(main)
    def ending(argv: Sequence[str] | None = None) -> int:
        guard_consoles()
        try:
            with signals_raise():
                status = main(argv)
                sys.stdout.flush()  # now, where a reader that has left can still be told from other trouble
                return status
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) and _stdout_is_closed():
                return reader_left()
            complain(script, described(error))
            return status_of(error)
        except KeyboardInterrupt as interrupt:
            complain(script, f"interrupted; {interrupt}" if str(interrupt) else "interrupted")
            return INTERRUPTED
        except SystemExit as ended:
            if ended.code is None:
                return DONE
            if not isinstance(ended.code, int):
                raise
            return ended.code

    return ending


def reader_left() -> int:
    """Drop what is still to be printed, because `head` or a pager that read it has ended; the status to end with."""
    drop_output()
    return 128 + signal.SIGPIPE


def show_help(script: str, text: str) -> None:
    """Print the text; end where standard output takes it no more: its reader has left, or its disk is full."""
    try:
        print(text.rstrip("\n"), flush=True)
    except BrokenPipeError:
        raise SystemExit(reader_left()) from None
    except OSError as error:
        complain(script, f"the help could not be printed: {described(error)}")
        drop_output()
        raise SystemExit(status_of(error)) from error


def drop_output() -> None:
    """Send what is still to be printed to nowhere: Python would complain once more when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_is_closed() -> bool:
    """Whether it is standard output that a broken pipe was about: the kernel says of a pipe that nobody reads it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def described(error: ValueError | OSError) -> str:
    """An error as one line shows it: an error of the system begins with the file that it is about."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
