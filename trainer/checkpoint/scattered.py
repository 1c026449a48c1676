"""Checkpoints whose files lie on several disks, none of which has all of them, and what a person can do about it.

Where nodes share no disk, each disk gets the files of its own ranks, and only the store has all of them. Such a
checkpoint is not damaged. It cannot be used while `checkpoint.upload` names a store that does not hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trainer.checkpoint.files import step_name

Faults = Mapping[str, str]
"""Name of a file of a checkpoint -> its fault on one disk."""


def is_scattered(by_disk: Sequence[Faults]) -> bool:
    """Whether every file that has a fault on some disk is whole on another one, and there is such a file."""
    names = set().union(*by_disk)
    return bool(names) and all(any(name not in faults for faults in by_disk) for name in names)


def said(step: int, by_disk: Sequence[Faults], upload: str) -> str:
    """What is true of a scattered checkpoint.

    Args:
        by_disk: the faults on each disk.
        upload: the present `checkpoint.upload`.
    """
    example = next(text for faults in by_disk for _, text in sorted(faults.items()))
    return (
        f"some disks lack files of {step_name(step)} that other disks have (for instance, {example}), and "
        f"checkpoint.upload={upload}, which they would be fetched from, does not hold this checkpoint"
    )


def copied(step: int, before: str, now: str) -> str:
    """The remedy that always works: a copy of the checkpoint at the new address."""
    place = before or "the disk that has all files, the folder checkpoints"
    return f"copy {step_name(step)} from {place} to {now}"


def moved_upload(step: int, before: str, now: str, wanted: bool) -> str:
    """The refusal where `checkpoint.upload` has changed since a scattered checkpoint was written.

    Args:
        before: what `checkpoint.upload` was; empty where it was not set.
        wanted: `checkpoint.resume` names this step, so that the old address may hold later checkpoints.
    """
    named = f"set checkpoint.upload={before} again, or " if before and not wanted else ""
    fork = f", or start another run with {forked(before, step)}" if before and wanted else ""
    return (
        f"checkpoint.upload changed from {before or '(none)'} to {now}, and {now} does not hold {step_name(step)}, of "
        f"which some disks here lack files that other disks have: {named}{copied(step, before, now)}{fork}. Nothing is "
        "damaged, and nothing was changed"
    )


def forked(upload: str, step: int) -> str:
    """`fork_from` with the checkpoint of an address, which nodes without a common disk all see if it is a folder."""
    if "://" not in upload:
        return f"fork_from={upload}@{step}"
    return f"fork_from=COPY@{step}, where COPY is a folder that every node sees, with {step_name(step)} of {upload}"
