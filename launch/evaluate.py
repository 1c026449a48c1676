"""Measure reconstructions of models: PSNR, SSIM, compression rate, and LPIPS and FVD where their weights are given.

python launch/evaluate.py --model runs/base/model --shards data/shards --output measured  # the dataset's val split
python launch/evaluate.py --model runs/base/model --source MCL-JCV/ --protocol mcl-jcv --lpips lpips.safetensors
python launch/evaluate.py --model runs/base/model --source UCF-101/ --list ucfTrainTestlist/testlist01.txt
python launch/evaluate.py --checkpoints runs/base --shards data/shards --output curve     # all that the run keeps
python launch/evaluate.py --model a b --baseline c --shards data/shards --output compared # with intervals
torchrun --nproc_per_node 8 launch/evaluate.py --model runs/base/model --shards data/shards --output measured

The same command again goes on where it ended, with any number of processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from launch.evaluation_measures import load_measures
from launch.evaluation_options import check, evaluation_parser
from launch.exit_status import DONE, ends_with_status

if TYPE_CHECKING:
    import argparse

    from trainer.evaluation.session import Candidate, Session


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = evaluation_parser(__file__, __doc__)
    arguments = parser.parse_args(argv)
    check(parser, arguments)

    from launch.evaluation_models import open_candidates
    from launch.evaluation_report import progress_line, write
    from trainer.evaluation.session import Session
    from trainer.latents.encoder import device_name
    from trainer.team import device_of_rank, joined

    device = device_of_rank(arguments.device)
    measures = load_measures(arguments, device)
    session = Session(
        candidates=open_candidates(arguments, device),
        measures=measures,
        device=device_name(device),
        batch=arguments.batch,
        output=arguments.output,
        finished=_say,
        changed=lambda: write(session, arguments),
    )
    names = [candidate.name for candidate in session.candidates]
    session.progress = progress_line(names, len(session.candidates[0].sources))
    with joined(device, str(arguments.output or "none"), session.equal()) as team:
        session.team = team
        if team.is_main:
            _begin(arguments, session)
        failure = session.run()
    if team.is_main:
        _conclude(arguments, session)
    if failure is not None:
        raise failure
    return DONE


def _begin(arguments: argparse.Namespace, session: Session) -> None:
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    for candidate in session.candidates:
        if candidate.provenance is not None:
            print(f"{candidate.name}: {candidate.provenance.describe()}", flush=True)


def _say(candidate: Candidate, found: dict[str, Any]) -> None:
    from trainer.evaluation.report import text_of

    print(f"\n{candidate.name}\n{text_of(found)}", flush=True)


def _conclude(arguments: argparse.Namespace, session: Session) -> None:
    """The tables, and the page with its moving pictures."""
    from launch.evaluation_report import full_report, output_files, write
    from trainer.evaluation.tables import summary

    if text := summary(full_report(session, arguments)):
        print(f"\n{text}", flush=True)
    if arguments.output is not None:
        write(session, arguments, session.shown())
        print(f"\n{output_files(arguments.output)}")


if __name__ == "__main__":
    sys.exit(main())
