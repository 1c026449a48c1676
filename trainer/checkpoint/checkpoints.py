"""Checkpoints that are complete or absent.

    OUTPUT/checkpoints/step-00001000/
        generator/ discriminator/   DeepSpeed's files of each engine
        method.pt ema-00000.pt ...  the method's own state, and each rank's shard of the moving average
        rng-00000.pt ...            the random generators of each rank
        state.json config.yaml      step, loader position, ranks, ZeRO stage; the resolved configuration
        COMPLETE                    written last, after every file has reached the disk: their sizes and sha256

No reader looks at a directory without COMPLETE, and the next start or save removes it. OUTPUT must lie on storage that
every rank sees, unless `checkpoint.upload` is set: then each node's directory holds the files of its own ranks, and
`newest` fetches the others from the store.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from data_pipeline.read.loader import ClipLoader, Position
from data_pipeline.store.base import StoreError
from trainer.checkpoint.files import (
    Files,
    flush_and_digest,
    marker_text,
    names_in,
    remove,
    step_name,
    steps_in,
    superseded,
    write_marker,
)
from trainer.checkpoint.joint_upload import JointUpload
from trainer.checkpoint.resume import Candidates
from trainer.checkpoint.same_run import check_same_run, unused_init_from
from trainer.checkpoint.shared_disks import find_shared_disks
from trainer.checkpoint.upload import Remote
from trainer.config.loader import to_yaml
from trainer.config.running import Resume
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.randomness import rng_state, seed_everything, set_rng_state


class Stateful(Protocol):
    """What a checkpoint holds besides the loop's own state."""

    def save(self, directory: Path) -> None: ...

    def load(self, directory: Path) -> None: ...


class Checkpoints:
    """The checkpoints of one run. Every rank makes every call."""

    def __init__(self, config: TrainConfig, ranks: Ranks, say: Callable[[str], None] = print) -> None:
        self.config, self.ranks, self.say = config, ranks, say
        self.settings = config.checkpoint
        self.folder = Path(config.output) / "checkpoints"
        self.shared_disks = find_shared_disks(ranks, self.folder)
        self.remote: Remote | None = None
        self.uploads: JointUpload | None = None
        self._metrics: dict[str, float] = {}
        if self.settings.upload:
            self.remote = Remote(self.settings.upload)
            self.uploads = JointUpload(self.settings, self.remote, self.folder, ranks, self.shared_disks, say)
        elif self.shared_disks.apart:
            groups = ", ".join("/".join(map(str, group)) for group in self.shared_disks.groups)
            raise ValueError(
                f"output={config.output} is not the same directory on all nodes (ranks that share one: {groups}); put "
                "it on storage that every rank sees, or set checkpoint.upload=s3://BUCKET/RUN"
            )

    # ---- writing --------------------------------------------------------------------------------------------------

    def save(self, step: int, position: Position, method: Stateful, loader: ClipLoader) -> Path:
        """Write the state after `step` steps, and remove the checkpoints that it replaces.

        When this method returns, the checkpoint is complete on the disk. A thread uploads it if `checkpoint.upload` is
        set.

        Raises:
            RuntimeError: the disk is full or cannot be written; the message names it.
        """
        begin = time.monotonic()
        directory = self.folder / step_name(step)
        self.remove_leftovers()
        try:
            files = self._write(directory, step, position, method, loader)
        except (OSError, RuntimeError) as error:  # torch writes its files without an errno
            free = shutil.disk_usage(self.folder.parent).free
            raise RuntimeError(
                f"{directory} could not be written: {error}. Its disk has {free / 1e6:.0f} MB left (there must be room "
                "for one checkpoint more than checkpoint.keep). The same command goes on from the checkpoint before"
            ) from error
        self._prune()
        if self.uploads is not None:
            self.uploads.saved(step)
        size = float(sum(entry["bytes"] for entry in files.values()))
        self._metrics |= {"save_seconds": time.monotonic() - begin, "save_bytes": size}
        return directory

    def _write(self, directory: Path, step: int, position: Position, method: Stateful, loader: ClipLoader) -> Files:
        if self.shared_disks.is_keeper:
            if directory.exists():  # the run was at this step before, and was then set back
                remove(directory)
            directory.mkdir(parents=True)
        self.ranks.barrier()
        method.save(directory)
        torch.save(rng_state(), directory / f"rng-{self.ranks.rank:05d}.pt")
        if self.ranks.is_main:
            (directory / "config.yaml").write_text(to_yaml(self.config))
            (directory / "state.json").write_text(
                json.dumps(self._state(step, position) | {"order": loader.identity}, indent=1)
            )
        self.ranks.barrier()
        files = self._digest_together(directory)
        if self.shared_disks.is_keeper:
            write_marker(directory, marker_text(step, files))
        self.ranks.barrier()
        return files

    def remove_leftovers(self) -> None:
        """Remove the checkpoints that were cut off while they were written, because they may be what fills the disk."""
        for step in steps_in(self.folder, complete=False) if self.shared_disks.is_keeper else []:
            leftover = self.folder / step_name(step)
            self.say(f"removing {leftover}, which was cut off while it was written")
            self._remove(leftover)

    def _digest_together(self, directory: Path) -> Files:
        """Flush every file to the disk; the size and sha256 of each. The ranks that share a disk divide its files.

        Each rank lists the directory and the lists are put together, because over NFS a rank may not see for a while
        what another rank has just written.
        """
        names = self.ranks.gather(names_in(directory))
        on_disk = sorted(set().union(*(names[rank] for rank in self.shared_disks.mine)))
        mine = {name: flush_and_digest(directory / name) for name in self.shared_disks.share(on_disk)}
        parts = self.ranks.gather(mine)
        return {name: entry for part in parts for name, entry in sorted(part.items())}

    def _prune(self) -> None:
        """Remove the checkpoints that newer ones replace, except those that are being uploaded."""
        if self.shared_disks.is_keeper:
            busy = self.uploads.busy() if self.uploads is not None else []
            for step in superseded(steps_in(self.folder, complete=True), self.settings.keep, self.settings.keep_every):
                if step not in busy:
                    self._remove(self.folder / step_name(step))
        self.ranks.barrier()

    def _remove(self, directory: Path) -> None:
        """Delete a checkpoint. Where that fails, for instance on NFS with open files, the next save tries again."""
        try:
            remove(directory)
        except OSError as error:
            self.say(f"warning: {directory} could not be removed ({error.strerror}); the next checkpoint tries again")

    def finish(self, told: Callable[[], bool]) -> bool:
        """Wait a bounded time for the upload of the last checkpoint. Every rank calls it when training has ended.

        Args:
            told: whether this rank has been told to stop; the wait is shorter then.
        Returns:
            On every rank, whether the upload was left to the next start because a rank was told to stop.
        """
        if self.uploads is None:
            return False
        left = self.uploads.finish(told)
        self._prune()  # removes what had to stay during the upload
        return left

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the saves and uploads since the last call: save_seconds, save_bytes, upload_seconds, ..."""
        metrics, self._metrics = self._metrics, {}
        return metrics | self.uploads.take_metrics() if self.uploads is not None else metrics

    def _state(self, step: int, position: Position) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": position.epoch,
            "consumed": position.consumed,
            "ranks": self.ranks.world_size,
            "zero_stage": self.config.zero.stage,
            "zero_discriminator_stage": self.config.zero.discriminator_stage,
            "precision": self.config.precision.value,
        }

    # ---- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The newest undamaged checkpoint, or None; the same on every rank. It is made complete on every disk.

        Raises:
            ValueError: a checkpoint exists although checkpoint.resume=never; or every checkpoint is damaged.
            StoreError: the store does not answer, and the disk holds no checkpoint.
        """
        candidates = Candidates(self.ranks, self.shared_disks, self.folder, self.remote, self.say)
        steps = candidates.list_steps()
        if steps and self.settings.resume is Resume.never:
            place = self.folder if candidates.local else self.settings.upload
            raise ValueError(
                f"{place} holds {step_name(steps[-1])} and checkpoint.resume=never; choose another output, remove it, "
                "or set checkpoint.resume=auto to go on from it"
            )
        newest = candidates.newest()
        if self.uploads is not None:
            self.uploads.begin(candidates.stored, candidates.cut_off)
        return newest

    def check(self, directory: Path, loader: ClipLoader) -> None:
        """Refuse to go on from `directory` if the result would not be the same run.

        Raises:
            ValueError: the checkpoint is of another model, data order or dataset.
        """
        state = json.loads((directory / "state.json").read_text())
        check_same_run(directory, self.config)
        if self.ranks.is_main and (remark := unused_init_from(directory, self.config)):
            self.say(remark)
        loader.check_identity(state["order"])

    def load(self, directory: Path, method: Stateful) -> tuple[int, Position]:
        """Load the states of the method and of the random generators from `directory`, which `check` let pass.

        Returns:
            The number of steps done and the loader's position.
        """
        state = json.loads((directory / "state.json").read_text())
        method.load(directory)
        generators = directory / f"rng-{self.ranks.rank:05d}.pt"
        if generators.is_file():
            set_rng_state(torch.load(generators, weights_only=True))
        else:  # the checkpoint is of fewer ranks, so this rank has no saved generators
            seed_everything(self.config.seed, self.ranks.rank, state["step"])
        self.ranks.barrier()
        if self.uploads is not None:
            self.uploads.start_missing()  # an interrupted run may have left checkpoints that the store lacks
        return state["step"], Position(state["epoch"], state["consumed"])

    def before(self, step: int) -> Path | None:
        """The newest complete checkpoint after at most `step` steps, or None; the same on every rank."""
        on_disk = steps_in(self.folder, complete=True) if self.shared_disks.is_keeper else None
        disks = [set(steps) for steps in self.ranks.gather(on_disk) if steps is not None]
        earlier = [other for other in set.intersection(*disks) if other <= step]
        return self.folder / step_name(max(earlier)) if earlier else None

    def set_back(self, step: int) -> None:
        """Remove the checkpoints of later steps from the disk and the store, because the run goes back to `step`.

        Raises:
            StoreError: the store does not delete them; raised on every rank.
        """
        problem = ""
        if self.shared_disks.is_keeper:
            try:
                if self.uploads is not None:
                    self.uploads.set_back(step)
            except OSError as error:
                problem = f"checkpoints of the time after step {step} could not be removed: {error}"
            for later in steps_in(self.folder, complete=True):
                if later > step:
                    remove(self.folder / step_name(later))
        problems = [text for text in self.ranks.gather(problem) if text]
        if problems:
            raise StoreError(f"{problems[0]}. Remove them by hand, then start again")
