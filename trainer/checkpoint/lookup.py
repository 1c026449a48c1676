"""The checkpoint that a path and a step name: of a run, of a folder of checkpoints, or a checkpoint itself."""

from __future__ import annotations

from pathlib import Path

from trainer.checkpoint.files import MARKER, is_complete, step_name, step_of, steps_in


def find_checkpoint(place: Path, step: int | None = None) -> Path:
    """The complete checkpoint that a path and a step name.

    Args:
        place: a checkpoint, whatever its name, a run's output directory, or its `checkpoints`.
        step: the checkpoint's step; None = the newest one, or the checkpoint that `place` is.
    Raises:
        ValueError: the path holds no such checkpoint.
    """
    if step_of(place.name) is not None or (place / "state.json").is_file():
        if not is_complete(place):
            raise ValueError(f"{place} has no {MARKER}: it was cut off while it was written; name another checkpoint")
        if step is not None and step != step_of(place.name):
            raise ValueError(f"{place} is not of step {step}; leave the step away, or name the run's output directory")
        return place
    folder = place / "checkpoints" if (place / "checkpoints").is_dir() else place
    return folder / step_name(chosen_step(steps_in(folder, complete=True), str(folder), step))


def chosen_step(steps: list[int], place: str, step: int | None) -> int:
    """`step`, which must be one of `steps`, or for None the last of them.

    Raises:
        ValueError: there is no such step; `place` names the folder or store.
    """
    if not steps:
        raise ValueError(f"{place} holds no complete checkpoint; name a checkpoint or a run's output directory")
    if step is not None and step not in steps:
        raise ValueError(f"{place} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    return steps[-1] if step is None else step


def all_checkpoints(run: Path) -> list[Path]:
    """Every complete checkpoint of a run that is on the disk, by step.

    Args:
        run: the run's output directory, its `checkpoints`, or a single checkpoint.
    Raises:
        ValueError: there is none.
    """
    if is_complete(run):
        return [run]
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    steps = steps_in(folder, complete=True)
    chosen_step(steps, str(folder), None)
    return [folder / step_name(step) for step in steps]
