"""Remove sources from a dataset by their ids; only the shards that hold their clips are written anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.store.open import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument("--ids", required=True, metavar="FILE", help="text file with one source id a line")
    arguments = parser.parse_args(argv)
    try:
        dataset = Dataset.open(open_store(arguments.output))
        ids = {line for line in Path(arguments.ids).read_text(encoding="utf-8").splitlines() if line}
        description = take_down(dataset, ids)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(description.ledger.table())
    print(f"taken down: {len(ids)} sources; python launch/verify_shards.py {arguments.output} proves the rest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
