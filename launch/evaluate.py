"""Measure a model's reconstructions: PSNR, SSIM, compression rate, and LPIPS and FVD where their weights are given.

python launch/evaluate.py --model runs/base/model --shards data/shards            # the dataset's val split
python launch/evaluate.py --model runs/base/model --source MCL-JCV/ --lpips lpips.safetensors --fvd i3d_torchscript.pt
python launch/evaluate.py --model runs/base/model --source UCF-101/ --list ucfTrainTestlist/testlist01.txt
python launch/evaluate.py --checkpoints runs/base --shards data/shards --output curve.html    # all that the run keeps
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from launch.command_line import counter
from launch.evaluation_options import Networks, check, evaluation_parser, load_networks, open_sources
from launch.exit_status import DONE, ends_with_status
from launch.inputs import speaking_of

if TYPE_CHECKING:
    import torch

    from model.vidtwin import VidTwin


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = evaluation_parser(__file__, __doc__)
    arguments = parser.parse_args(argv)
    check(parser, arguments)

    from launch.evaluation_report import curve_table, write
    from trainer.engine.device import find_device
    from trainer.evaluation.run import CutShort, table

    device = find_device(arguments.device)
    networks = load_networks(arguments, device)
    reports: list[dict[str, Any]] = []
    for name, model in _models(arguments, device):
        source = None if model.provenance is None else model.provenance.to_json()
        if model.provenance is not None:
            print(f"{name}: {model.provenance.describe()}\n", flush=True)
        weights = "untrained" if arguments.untrained else "trained"
        reports.append({"model": name, "weights": weights, "provenance": source, "results": []})
        for result in _results(arguments, model, networks):
            cause = result.__cause__ if isinstance(result, CutShort) else None
            report = result.report if isinstance(result, CutShort) else result
            print(table(report), end="\n\n", flush=True)
            reports[-1]["results"].append(report)
            write(arguments, reports)
            if cause is not None:
                raise cause
    if arguments.checkpoints is not None:
        print(curve_table(reports), flush=True)
    if arguments.output is not None:
        print(f"written to {arguments.output}")
    return DONE


def _models(arguments: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, VidTwin]]:
    """The model, or those of all checkpoints of a run in the order of their steps, each with its name."""
    from model.provenance import Weights
    from trainer.checkpoint.export import export
    from trainer.checkpoint.lookup import all_checkpoints
    from trainer.evaluation.run import load_model

    if arguments.checkpoints is None:
        yield arguments.model, load_model(arguments.model, device, arguments.untrained)
        return
    weights = Weights(arguments.weights) if arguments.weights else None
    for checkpoint in all_checkpoints(arguments.checkpoints):
        with TemporaryDirectory(prefix="vidtwin-evaluate-") as folder:
            export(str(checkpoint), Path(folder, "model"), None, weights)
            model = load_model(Path(folder, "model"), device)
        yield str(checkpoint), model


def _results(arguments: argparse.Namespace, model: VidTwin, networks: Networks) -> Iterator[Any]:
    """The report of each source; at last a `CutShort` where one of them ended early."""
    from trainer.evaluation.run import CutShort, evaluate

    with speaking_of({"data.shards=": "--shards ", "data.split=": "--split ", "data.frames=": "--frames "}):
        sources = open_sources(arguments, model)  # all that can be refused is opened before a window is measured
    for source in sources:
        try:
            yield evaluate(
                model,
                source,
                batch=arguments.batch,
                perceptual=networks.perceptual,
                fvd=networks.frechet(),
                progress=counter("windows"),
            )
        except CutShort as short:
            yield short


if __name__ == "__main__":
    sys.exit(main())
