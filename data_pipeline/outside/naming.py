"""What an option names, refused: the message begins with the option, as a user would look for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def naming(option: str) -> Iterator[None]:
    """Inside, the message of a ValueError or OSError gets the option in front, unless it begins with it already.

    Args:
        option: with what stands between it and its value, such as `--model ` or `init_from=`. The block opens what the
            option names, so that the messages begin with a path.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:  # the script prints the file first
            if not str(error.filename).startswith(option):
                error.filename = f"{option}{error.filename}"
        else:
            _put_before(option, error)
        raise
    except ValueError as error:
        _put_before(option, error)
        raise


def _put_before(option: str, error: OSError | ValueError) -> None:
    if len(error.args) == 1 and not str(error).startswith(option):
        error.args = (f"{option}{error}",)
