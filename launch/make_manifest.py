"""Write the manifest of a known video collection, for launch/build_shards.py."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.source.collections import UCF101_SPLITS, mcl_jcv, ucf101, write_manifest


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 2 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    actions = kinds.add_parser("ucf101", help="class folders of .avi files and the official lists")
    actions.add_argument("--lists", type=Path, required=True, help="folder of classInd.txt, trainlist01.txt, ...")
    actions.add_argument("--split", type=int, choices=UCF101_SPLITS, default=1, help="official split (%(default)s)")
    sequences = kinds.add_parser("mcl-jcv", help="files named videoSRC<number>_...")
    sequences.add_argument("--partial", action="store_true", help="allow fewer than the thirty sequences")
    for kind in (actions, sequences):
        kind.add_argument("videos", type=Path, help="folder of the videos")
        kind.add_argument("--output", type=Path, required=True, metavar="FILE", help="manifest: .csv or .parquet")
    arguments = parser.parse_args(argv)
    try:
        if arguments.kind == "ucf101":
            rows = ucf101(arguments.videos, arguments.lists, arguments.split, arguments.output)
        else:
            rows = mcl_jcv(arguments.videos, arguments.output, partial=arguments.partial)
        write_manifest(rows, arguments.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    splits = ", ".join(f"{name} {count}" for name, count in sorted(Counter(row.split for row in rows).items()))
    print(f"{arguments.output}: {len(rows)} rows ({splits})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
