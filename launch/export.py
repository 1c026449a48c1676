"""Write a model from a checkpoint of any number of ranks and any ZeRO stage, or in another form, on one CPU.

    python launch/export.py --checkpoint runs/base --output models/base
    python launch/export.py --checkpoint runs/base --step 20000 --weights raw --output models/base-20000
    python launch/export.py --checkpoint s3://bucket/runs/base --output models/base
    python launch/export.py --model models/base --format diffusers --output hub/base

`VidTwin.from_pretrained`, launch/evaluate.py, launch/reconstruct.py and `init_from` take a model directory, the default
form. The other forms need nothing of this project (docs/export.md). A run of launch/train_diffusion.py gives the model
directory of its DiT, for launch/sample.py.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from launch.exit_status import DONE, ends_with_status
from launch.export_options import check_combination, export_parser
from launch.inputs import is_dit, model, shards
from launch.outputs import check_output_folder
from model.export.formats import Format

if TYPE_CHECKING:
    from model.vidtwin import VidTwin


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = export_parser(__file__, __doc__)
    arguments = parser.parse_args(argv)
    check_combination(parser, arguments)
    inputs = {
        "--checkpoint": arguments.checkpoint,
        "--model": model(arguments.model),
        "--statistics": shards(arguments.statistics),
    }
    check_output_folder(arguments.output, inputs)

    form = Format(arguments.format)
    if arguments.model and is_dit(arguments.model):
        return _dit_directory(arguments, form)
    if arguments.checkpoint:
        return _checkpoint(arguments, form)

    from model.vidtwin import VidTwin

    with naming("--model "):
        vidtwin = VidTwin.from_pretrained(arguments.model)
    _write(arguments, form, vidtwin, f"from {arguments.model}")
    return DONE


def _checkpoint(arguments: argparse.Namespace, form: Format) -> int:
    from model.provenance import Weights
    from trainer.checkpoint.export import load_vidtwin, opened, write_vidtwin
    from trainer.diffusion.export import ENGINE, export_dit

    weights = Weights(arguments.weights) if arguments.weights else None
    with ExitStack() as stack:
        with naming("--checkpoint "):
            found = stack.enter_context(opened(arguments.checkpoint, arguments.step, weights))
        done = found.exported.describe()
        if found.holds(ENGINE):
            _refuse_for_dit(arguments.checkpoint, form)
            export_dit(found, arguments.output)
        elif form is Format.model:
            write_vidtwin(found, arguments.output)
        else:
            _write(arguments, form, load_vidtwin(found), done)
            return DONE
    print(f"{arguments.output}: {done}")
    return DONE


def _dit_directory(arguments: argparse.Namespace, form: Format) -> int:
    _refuse_for_dit(arguments.model, form)

    from data_pipeline.store.files import atomic_folder
    from model.dit import DiT
    from trainer.diffusion.export import write_dit

    with naming("--model "):
        dit = DiT.from_pretrained(arguments.model)
    with atomic_folder(arguments.output) as folder:
        write_dit(dit, folder)
    print(f"{arguments.output}: format {form.value}, from {arguments.model}")
    return DONE


def _refuse_for_dit(place: str, form: Format) -> None:
    if form is not Format.model:
        raise ValueError(
            f"--format {form.value} is a form of a VidTwin, and {place} holds a DiT; a DiT has only --format model"
        )


def _write(arguments: argparse.Namespace, form: Format, vidtwin: VidTwin, source: str) -> None:
    from data_pipeline.store.files import atomic_folder
    from model.export.latent_statistics import read_statistics
    from model.export.write import write

    statistics = read_statistics(arguments.statistics, vidtwin) if arguments.statistics else None
    with atomic_folder(arguments.output) as folder:
        write(vidtwin, folder, form, arguments.frames, arguments.image_size, statistics)
    print(f"{arguments.output}: format {form.value}, {source}")


if __name__ == "__main__":
    sys.exit(main())
