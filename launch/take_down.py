"""Remove sources from a dataset by their ids; only the shards that hold their clips are written anew.

python launch/take_down.py --shards data/shards --ids ids.txt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_pipeline.store.counted import counted
from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.option_types import path, place


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--shards", type=place, required=True, help="the dataset: folder or s3://bucket/prefix")
    parser.add_argument("--ids", type=path, required=True, metavar="FILE", help="text file with one source id a line")
    arguments = parser.parse_args(argv)

    from data_pipeline.dataset.kind import CLIPS
    from data_pipeline.dataset.plan import Dataset
    from data_pipeline.dataset.takedown import take_down
    from data_pipeline.store.open import open_store
    from data_pipeline.store.text import read_lines

    dataset = Dataset.open(open_store(arguments.shards), CLIPS)
    ids = {line for line in read_lines(arguments.ids) if line}
    if not ids:
        raise ValueError(f"--ids {arguments.ids} holds no id; write one source id a line")
    description = take_down(dataset, ids)
    print(description.ledger.table())
    proof = f"python launch/verify_shards.py --shards {arguments.shards} proves the rest"
    print(f"taken down: {counted(len(ids), 'source')}; {proof}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
