"""Write one HTML page about a dataset of shards: ledger, histograms, accepted and refused clips. It loads nothing.

python launch/report_shards.py --shards data/shards --source videos --output report.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.report.config import SurveyConfig
from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import shards, videos
from launch.option_types import path, place, whole_number
from launch.outputs import check_output_file


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    default = SurveyConfig()
    parser = script_parser(__file__, __doc__)
    parser.add_argument(
        "--shards", type=place, required=True, help="the dataset: folder or s3://bucket/prefix; may be in work"
    )
    parser.add_argument(
        "--output", type=path, default=Path("report.html"), metavar="FILE", help="the page, .html (%(default)s)"
    )
    parser.add_argument(
        "--source",
        type=path,
        help="local --source of the build: pictures of refused videos come from there, and from nowhere else",
    )
    count = whole_number(0)
    parser.add_argument("--clips", type=count, default=default.clips, help="clips read for measures (%(default)s)")
    parser.add_argument("--pictures", type=count, default=default.pictures, help="accepted clips shown (%(default)s)")
    parser.add_argument("--examples", type=count, default=default.examples, help="shown for each reason (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the random draws (%(default)s)")
    arguments = parser.parse_args(argv)
    config = SurveyConfig(
        clips=arguments.clips, pictures=arguments.pictures, examples=arguments.examples, seed=arguments.seed
    )
    inputs = {"--shards": shards(arguments.shards), "--source": videos(arguments.source)}
    check_output_file(arguments.output, (".html", ".htm"), inputs)

    from data_pipeline.report.page import shards_page
    from data_pipeline.report.survey import survey
    from data_pipeline.store.files import atomic_file
    from data_pipeline.store.open import open_store

    found = survey(open_store(arguments.shards), config, arguments.source)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(arguments.output) as temporary:
        temporary.write_text(shards_page(found), encoding="utf-8")
    print(found.ledger.table())
    print(f"page      {arguments.output}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
