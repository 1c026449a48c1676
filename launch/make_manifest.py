"""Write the manifest of a known video collection, for launch/build_shards.py, or bring the rows of a video together.

python launch/make_manifest.py ucf101 --source UCF-101 --lists ucfTrainTestlist --output ucf101.csv
python launch/make_manifest.py mcl-jcv --source MCL-JCV --output mcl-jcv.parquet
python launch/make_manifest.py sort --source windows.csv --output sorted.csv
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence

from data_pipeline.source.config import UCF101_SPLITS
from data_pipeline.source.names import MANIFEST_SUFFIXES
from data_pipeline.store.counted import counted
from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import collection
from launch.option_types import path
from launch.outputs import check_output_file


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    actions = kinds.add_parser("ucf101", help="class folders of .avi files and the official lists")
    actions.add_argument("--lists", type=path, required=True, help="folder of classInd.txt, trainlist01.txt, ...")
    actions.add_argument("--split", type=int, choices=UCF101_SPLITS, default=1, help="official split (%(default)s)")
    sequences = kinds.add_parser("mcl-jcv", help="files named videoSRC<number>_...")
    sequences.add_argument("--partial", action="store_true", help="allow fewer than the thirty sequences")
    windows = kinds.add_parser("sort", help="any manifest: bring the rows of each video together, to fetch it once")
    windows.add_argument("--video", default="video", metavar="COLUMN", help="column of the videos (%(default)s)")
    windows.add_argument("--source", type=path, required=True, metavar="FILE", help="manifest")
    windows.add_argument("--output", type=path, required=True, metavar="FILE", help="another one of the same kind")
    for kind in (actions, sequences):
        kind.add_argument("--source", type=path, required=True, help="folder of the videos")
        kind.add_argument("--output", type=path, required=True, metavar="FILE", help="manifest: .csv or .parquet")
    arguments = parser.parse_args(argv)
    if arguments.kind == "sort":
        return _sort(arguments)
    lists = arguments.lists if arguments.kind == "ucf101" else None
    inputs = {"--source": collection(arguments.source), "--lists": collection(lists)}
    check_output_file(arguments.output, (".csv", ".parquet"), inputs)

    from data_pipeline.source.collections import mcl_jcv, ucf101, write_manifest

    if arguments.kind == "ucf101":
        rows = ucf101(arguments.source, arguments.lists, arguments.split, arguments.output)
    else:
        rows = mcl_jcv(arguments.source, arguments.output, partial=arguments.partial)
    write_manifest(rows, arguments.output)
    splits = ", ".join(f"{name} {count}" for name, count in sorted(Counter(row.split for row in rows).items()))
    print(f"{arguments.output}: {counted(len(rows), 'row')} ({splits})")
    return DONE


def _sort(arguments: argparse.Namespace) -> int:
    check_output_file(arguments.output, MANIFEST_SUFFIXES, {"--source": arguments.source})
    if not arguments.source.is_file():
        raise ValueError(f"--source {arguments.source} is no file; name a manifest")

    from data_pipeline.source.sorting import bring_together

    done = bring_together(arguments.source, arguments.output, arguments.video)
    print(
        f"{arguments.output}: {counted(done.rows, 'row')} of {counted(done.videos, 'video')}, "
        f"{done.moved} at another position"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
