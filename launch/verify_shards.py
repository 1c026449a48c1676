"""Prove a dataset of shards: source rows = committed + rejected + quarantined, and every byte is what was committed.

python launch/verify_shards.py --shards data/shards
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_pipeline.store.counted import counted
from launch.command_line import script_parser
from launch.exit_status import DONE, FAILED, complain, ends_with_status
from launch.option_types import place


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 1 for a dataset that is wrong somewhere, and as docs/commands.md says."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--shards", type=place, required=True, help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument("--quick", action="store_true", help="compare the shards' sizes only, without reading them")
    parser.add_argument(
        "--source",
        type=place,
        help="of latents: the clips they were made of, to name latents whose clip is gone; of texts: the latents",
    )
    arguments = parser.parse_args(argv)

    from data_pipeline.dataset.kind import TEXTS
    from data_pipeline.dataset.sources import check_source
    from data_pipeline.dataset.verify import verify
    from data_pipeline.latents.compare import strays
    from data_pipeline.store.open import open_store
    from data_pipeline.texts.planner import missing_captions

    store = open_store(arguments.shards)
    if arguments.source is not None:
        check_source(store, open_store(arguments.source), named="--source ")
    found = verify(store, contents=not arguments.quick)
    if arguments.source is not None and not found.problems:
        compare = missing_captions if found.kind is TEXTS else strays
        found.problems += compare(store, open_store(arguments.source))
    print(found.ledger.table(found.kind))
    for problem in found.problems:
        print(f"wrong: {problem}", file=sys.stderr)
    if found.problems:
        complain(parser.prog, f"{counted(len(found.problems), 'problem')} in {counted(found.units, 'unit')}")
        return FAILED
    proven = f"{counted(found.units, 'unit')}, {counted(found.shards, 'shard')}"
    print(f"proven: {proven}, every source row accounted for exactly once")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
