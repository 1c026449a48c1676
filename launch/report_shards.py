"""Write one HTML page about a dataset of shards: ledger, histograms, accepted and refused clips. It loads nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.report.page import shards_page
from data_pipeline.report.survey import SurveyConfig, survey
from data_pipeline.store.files import atomic_file
from data_pipeline.store.open import open_store


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 2 wrong input."""
    default = SurveyConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", metavar="OUTPUT", help="the dataset: folder or s3://bucket/prefix; may be in work")
    parser.add_argument("--output", default="report.html", metavar="FILE", help="the page (default: %(default)s)")
    parser.add_argument(
        "--source",
        type=Path,
        help="local --source of the build: pictures of refused videos come from there, and from nowhere else",
    )
    parser.add_argument("--clips", type=int, default=default.clips, help="clips read for their measures (%(default)s)")
    parser.add_argument("--pictures", type=int, default=default.pictures, help="accepted clips shown (%(default)s)")
    parser.add_argument("--examples", type=int, default=default.examples, help="shown for each reason (%(default)s)")
    parser.add_argument("--seed", type=int, default=default.seed, help="of the random draws (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        config = SurveyConfig(
            clips=arguments.clips, pictures=arguments.pictures, examples=arguments.examples, seed=arguments.seed
        )
        found = survey(open_store(arguments.dataset), config, arguments.source)
        target = Path(arguments.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            temporary.write_text(shards_page(found), encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(found.ledger.table())
    print(f"page      {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
