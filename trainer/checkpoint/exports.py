"""The model directories of a run: where their weights come from, and what becomes of them when the run goes on.

    OUTPUT/model/ model_ema/                 of a finished run, and of the step that config.yaml and checkpoints/ end at
    OUTPUT/model-step-00000600/              what stood there when the run went on after step 600; and of its average,
    OUTPUT/model_ema-step-00000600/          where there was one

So `OUTPUT/model` is never older than the run: while a run goes on there is none, and whoever reads that path then is
told that it is missing instead of measuring an older model. Nothing is deleted.
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.outside.documents import read_json_object, read_yaml_mapping
from model.provenance import PROVENANCE_FILE, Provenance, Weights
from trainer.checkpoint.files import read_state, step_name, unused_name
from trainer.checkpoint.same_run import flatten

MODEL = "model"


def average_of(directory: Path) -> Path:
    """The directory of the moving average that belongs to a model directory of a run."""
    return directory.with_name(f"{directory.name}_ema")


def provenance_of(checkpoint: Path, weights: Weights) -> Provenance:
    """Where the weights of a checkpoint come from.

    A checkpoint of a program that did not write its digest down gives an empty one.
    """
    state = read_state(checkpoint)
    return Provenance(
        step=state["step"],
        weights=weights,
        settings=flatten(read_yaml_mapping(checkpoint / "config.yaml")),
        data=state["order"],
        program=state.get("program", ""),
        forked_from=state.get("forked_from"),
    )


def set_exports_aside(output: Path) -> list[tuple[Path, Path]]:
    """Rename the model directories of a finished run by their steps, because the run goes on.

    A directory without a `provenance.json` that names a step, such as one that was damaged, gets the name
    `model-of-unknown-step`.

    Returns:
        The old and the new path of each.
    """
    moved = []
    for directory in (output / MODEL, average_of(output / MODEL)):
        if directory.is_dir():
            target = unused_name(directory.with_name(f"{directory.name}-{_step_of_export(directory)}"))
            moved.append((directory, directory.rename(target)))
    return moved


def _step_of_export(directory: Path) -> str:
    try:
        step = read_json_object(directory / PROVENANCE_FILE).get("step")
    except (OSError, ValueError):  # the directory only makes room, and what is in it stays as it is
        step = None
    return step_name(step) if type(step) is int else "of-unknown-step"
