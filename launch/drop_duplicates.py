"""Drop near-duplicate clips of different sources from a complete dataset; the first of each kind stays."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.dataset.config import MAX_DISTANCE
from data_pipeline.dataset.near_duplicates import drop_near_duplicates
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.open import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument(
        "--distance",
        type=int,
        default=3,
        help=f"bits of 64 in which the hashes of near-duplicates differ at most, 0 to {MAX_DISTANCE} (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="count them and change nothing")
    arguments = parser.parse_args(argv)
    try:
        dataset = Dataset.open(open_store(arguments.output))
        done = drop_near_duplicates(dataset, arguments.distance, write=not arguments.dry_run)
        if done.description is not None:
            print(done.description.ledger.table())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'would drop' if arguments.dry_run else 'dropped'} {done.dropped} of {done.clips} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
