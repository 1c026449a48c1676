"""Drop near-duplicate clips of different sources from a complete dataset; the first of each kind stays.

python launch/drop_duplicates.py --shards data/shards --dry-run
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_pipeline.dataset.config import MAX_DISTANCE
from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.option_types import place


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--shards", type=place, required=True, help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument(
        "--distance",
        type=int,
        choices=range(MAX_DISTANCE + 1),
        default=3,
        metavar="BITS",
        help=f"bits of 64 in which the hashes of near-duplicates differ at most, 0 to {MAX_DISTANCE} (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="count them and change nothing")
    arguments = parser.parse_args(argv)

    from data_pipeline.dataset.kind import CLIPS
    from data_pipeline.dataset.near_duplicates import drop_near_duplicates
    from data_pipeline.dataset.plan import Dataset
    from data_pipeline.store.open import open_store

    dataset = Dataset.open(open_store(arguments.shards), CLIPS)
    done = drop_near_duplicates(dataset, arguments.distance, write=not arguments.dry_run)
    if done.description is not None:
        print(done.description.ledger.table())
    print(f"{'would drop' if arguments.dry_run else 'dropped'} {done.dropped} of {done.clips} clips")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
