"""Prove a dataset of shards: source rows = committed + rejected + quarantined, and every byte is what was committed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from data_pipeline.dataset.verify import verify
from data_pipeline.store.open import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 proven, 1 something is wrong, 2 not a dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument("--quick", action="store_true", help="compare the shards' sizes only, without reading them")
    arguments = parser.parse_args(argv)
    try:
        found = verify(open_store(arguments.output), contents=not arguments.quick)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.ledger.table())
    for problem in found.problems:
        print(f"wrong: {problem}", file=sys.stderr)
    if found.problems:
        print(f"error: {len(found.problems)} problems in {found.units} units", file=sys.stderr)
        return 1
    print(f"proven: {found.units} units, {found.shards} shards, every source row accounted for exactly once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
