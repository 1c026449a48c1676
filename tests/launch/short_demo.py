"""The demo with an evaluation of few windows, for its test: a perceptual network takes seconds for all of them.

python -m tests.launch.short_demo --output DIRECTORY [KEY=VALUE ...]
"""

from __future__ import annotations

import sys

import launch.demo.run
from launch.demo.__main__ import main

WINDOWS = 4
"""Windows measured of each split: more than the page shows of one."""

if __name__ == "__main__":
    launch.demo.run.WINDOWS = WINDOWS
    sys.exit(main())
