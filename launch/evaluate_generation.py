"""Measure generated clips: gFVD with its protocol, distances of frames, class agreement, nearest training clips.

    python launch/evaluate_generation.py --samples samples --shards data/shards --latents data/latents \\
        --decoder runs/base/model --output measured --extractor i3d_torchscript.pt --per-class 20

--output gets report.json, report.html, the videos that the page shows, and the features, so that the same command goes
on where it ended. docs/generation_measuring.md says what the values mean.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from launch.exit_status import DONE, ends_with_status
from launch.generation_options import REPORTS, VIDEOS, check, generation_parser, prepare


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = generation_parser(__file__, __doc__)
    arguments = parser.parse_args(argv)
    check(parser, arguments)

    from data_pipeline.store.files import atomic_file
    from launch.generation_page import generation_page
    from trainer.generation.measure import summary
    from trainer.generation.paper import paper_row
    from trainer.generation.protocol import describe, lines
    from trainer.generation.shown import shown

    measuring = prepare(arguments)
    protocol = describe(measuring.chosen, measuring.clips, measuring.networks, measuring.decoder)
    print("\n".join(lines(protocol)), flush=True)
    report: dict[str, Any] = {"format": 1, "protocol": protocol, **measuring.run()}
    if arguments.paper:
        report["paper"] = paper_row(protocol)
    print(summary(report), flush=True)
    for line in _paper_lines(report):
        print(line)
    rows = shown(measuring, report, arguments.show, arguments.output / VIDEOS)
    texts = json.dumps(report, indent=1) + "\n", generation_page(report, lines(protocol), rows)
    for name, text in zip(REPORTS, texts, strict=True):
        with atomic_file(arguments.output / name) as temporary:
            temporary.write_text(text, "utf-8")
    print(f"written to {arguments.output / 'report.html'} and report.json")
    return DONE


def _paper_lines(report: dict[str, Any]) -> list[str]:
    if "paper" not in report:
        return []
    row = report["paper"]
    ours = report["metrics"].get("gfvd")
    values = ", ".join(f"{method} {value:g}" for method, value in row["gfvd"].items())
    here = f"{ours['value']:.4g}" if ours else "not computed"
    return [
        f"  gFVD of the paper ({row['source']}): {values}; here {here}",
        *(f"  differs: {difference}" for difference in row["differences"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
