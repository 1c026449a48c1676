"""`--check` of the scripts that train: what a training would need is printed, and nothing is started."""

from __future__ import annotations

import os
from collections.abc import Callable

from launch.exit_status import DONE, complain, described, status_of


def check_here(check: Callable[[int], list[str]], script: str) -> int:
    """Print what a training would need, without starting it; of several ranks only the first one does so.

    Args:
        check: takes the number of ranks, and returns lines; ValueError or OSError where the training would be refused.
        script: how messages begin.
    Returns:
        The exit status.
    """
    if os.environ.get("RANK", "0") != "0":
        return DONE
    try:
        lines = check(int(os.environ.get("WORLD_SIZE", "1")))
    except (ValueError, OSError) as error:
        complain(script, described(error))
        return status_of(error)
    print("\n".join(lines))
    return DONE
