"""Checkpoints that are complete or absent.

    OUTPUT/checkpoints/step-00001000/
        generator/ discriminator/   DeepSpeed's files of each engine
        method.pt ema-00000.pt ...  the method's own state, and each rank's shard of the moving average
        rng-00000.pt ...            the random generators of each rank
        state.json config.yaml      step, loader position, ranks, ZeRO stage; the resolved configuration
        COMPLETE                    written last, after every file has reached the disk: their sizes and sha256

A directory without COMPLETE does not exist for the reader, and is removed by the next start or save. The directory must
be on storage that every rank sees; or there is `checkpoint.upload`, and each node's directory holds the files of its
own ranks, which `newest` completes from the store.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data_pipeline.read.loader import Position
from data_pipeline.store.base import StoreError
from trainer.checkpoint import shared_disks
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
from trainer.checkpoint.resume import Choice
from trainer.checkpoint.same_run import check_same_run, not_looked_at
from trainer.config.loader import to_yaml
from trainer.config.run import RunConfig
from trainer.config.running import Resume
from trainer.distributed import Ranks
from trainer.method import Loader, Method
from trainer.randomness import rng_state, seed_everything, set_rng_state


class Checkpoints:
    """The checkpoints of one run. Every rank makes every call."""

    def __init__(self, config: RunConfig, ranks: Ranks, say: Callable[[str], None] = print) -> None:
        self.config, self.ranks, self.say = config, ranks, say
        self.settings = config.checkpoint
        self.folder = Path(config.output) / "checkpoints"
        self.neighbours = shared_disks.find(ranks, self.folder)
        self.uploads: JointUpload | None = None
        self._news: dict[str, float] = {}
        if self.settings.upload:
            self.uploads = JointUpload(self.settings, self.folder, ranks, self.neighbours, say)
        elif self.neighbours.apart:
            seen = ", ".join("/".join(map(str, group)) for group in self.neighbours.groups)
            raise ValueError(
                f"output={config.output} is not the same directory on all nodes (ranks that share one: {seen}); put it "
                "on storage that every rank sees, or set checkpoint.upload=s3://BUCKET/RUN"
            )

    # ---- writing --------------------------------------------------------------------------------------------------

    def save(self, step: int, position: Position, method: Method[Any], loader: Loader[Any]) -> Path:
        """Write the state after `step` steps; when this returns, it is complete on disk and old ones are gone.

        The upload, if there is one, goes on in the background.
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
            self.uploads.uploader.forget(step)
            self.uploads.go_on()
        size = float(sum(entry["bytes"] for entry in files.values()))
        self._news |= {"save_seconds": time.monotonic() - begin, "save_bytes": size}
        return directory

    def _write(self, directory: Path, step: int, position: Position, method: Method[Any], loader: Loader[Any]) -> Files:
        if self.neighbours.is_keeper:
            if directory.exists():  # of a later part of the run, from before it was set back
                remove(directory)
            directory.mkdir(parents=True)
        self.ranks.barrier()
        method.save(directory)
        torch.save(rng_state(), directory / f"rng-{self.ranks.rank:05d}.pt")
        if self.ranks.is_main:
            (directory / "config.yaml").write_text(to_yaml(self.config))
            state = self._state(step, position) | dict(method.layout) | {"order": dict(loader.identity)}
            (directory / "state.json").write_text(json.dumps(state, indent=1))
        self.ranks.barrier()
        files = self._digest_together(directory)
        if self.neighbours.is_keeper:
            write_marker(directory, marker_text(step, files))
        self.ranks.barrier()
        return files

    def remove_leftovers(self) -> None:
        """Remove what was cut off while it was written: it is of no use, and may be what fills the disk."""
        for step in steps_in(self.folder, complete=False) if self.neighbours.is_keeper else []:
            leftover = self.folder / step_name(step)
            self.say(f"removing {leftover}, which was cut off while it was written")
            self._remove(leftover)

    def _digest_together(self, directory: Path) -> Files:
        """Size and sha256 of every file, each flushed to disk; the files of a disk are divided among its ranks.

        What a rank has just written it lists itself: over NFS, others may not see it in a listing for a while.
        """
        names = self.ranks.gather(names_in(directory))
        here = sorted(set().union(*(names[rank] for rank in self.neighbours.mine)))
        mine = {name: flush_and_digest(directory / name) for name in self.neighbours.share(here)}
        parts = self.ranks.gather(mine)
        return {name: entry for part in parts for name, entry in sorted(part.items())}

    def _prune(self) -> None:
        """Remove what newer checkpoints replace, but nothing that is being uploaded."""
        if self.neighbours.is_keeper:
            busy = self.uploads.uploader.busy() if self.uploads is not None else []
            for step in superseded(steps_in(self.folder, complete=True), self.settings.keep, self.settings.keep_every):
                if step not in busy:
                    self._remove(self.folder / step_name(step))
        self.ranks.barrier()

    def _remove(self, directory: Path) -> None:
        """Delete what is not needed any more; what cannot be deleted now (open files on NFS) is tried again later."""
        try:
            remove(directory)
        except OSError as error:
            self.say(f"warning: {directory} could not be removed ({error.strerror}); the next checkpoint tries again")

    def finish(self, stop_requested: Callable[[], bool]) -> bool:
        """Wait a bounded time for the upload of the last checkpoint; every rank calls it when training has ended.

        Args:
            stop_requested: whether this rank has been asked to stop; then the wait is a shorter one.
        Returns:
            On every rank, whether the upload was left to the next start because of that.
        """
        if self.uploads is None:
            return False
        left = self.uploads.finish(stop_requested)
        self._prune()  # what had to stay for an upload
        return left

    def news(self) -> dict[str, float]:
        """Seconds and bytes of what was saved or uploaded since the last call."""
        news, self._news = self._news, {}
        while self.uploads is not None and self.uploads.uploader.news:
            news |= self.uploads.uploader.news.popleft()
        return news

    def _state(self, step: int, position: Position) -> dict[str, Any]:
        return {
            "step": step,
            "epoch": position.epoch,
            "consumed": position.consumed,
            "ranks": self.ranks.world_size,
        }

    # ---- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, made whole on every disk, or None; the same on every rank.

        Raises:
            ValueError: checkpoint.resume=never, and there is one; or every one is damaged.
            StoreError: the store does not answer, and there is none here.
        """
        remote = self.uploads.uploader.remote if self.uploads is not None else None
        choice = Choice(self.ranks, self.neighbours, self.folder, remote, self.say)
        steps = choice.look()
        if steps and self.settings.resume is Resume.never:
            place = self.folder if choice.local else self.settings.upload
            raise ValueError(
                f"{place} holds {step_name(steps[-1])} and checkpoint.resume=never; choose another output, remove it, "
                "or set checkpoint.resume=auto to go on from it"
            )
        found = choice.newest()
        if self.uploads is not None:
            self.uploads.uploader.found(choice.stored, choice.cut_off)
        return found

    def check(self, directory: Path, loader: Loader[Any]) -> None:
        """Refuse to go on from `directory` where that could not give the same run.

        Raises:
            ValueError: it is damaged, or of another model, data order or dataset.
        """
        state = json.loads((directory / "state.json").read_text())
        check_same_run(directory, self.config)
        if self.ranks.is_main and (remark := not_looked_at(directory, self.config)):
            self.say(remark)
        loader.check_identity(state["order"])

    def load(self, directory: Path, method: Method[Any]) -> tuple[int, Position]:
        """Bring the method and the random generators to where `directory`, which `check` let pass, was saved.

        Returns:
            Steps done and the loader's position.
        """
        state = json.loads((directory / "state.json").read_text())
        method.load(directory)
        generators = directory / f"rng-{self.ranks.rank:05d}.pt"
        if generators.is_file():
            set_rng_state(torch.load(generators, weights_only=True))
        else:  # the checkpoint is of fewer ranks
            seed_everything(self.config.seed, self.ranks.rank, state["step"])
        self.ranks.barrier()
        if self.uploads is not None:
            self.uploads.go_on()  # what an interrupted run had not uploaded
        return state["step"], Position(state["epoch"], state["consumed"])

    def before(self, step: int) -> Path | None:
        """The newest complete checkpoint after at most `step` steps, or None; the same on every rank."""
        here = steps_in(self.folder, complete=True) if self.neighbours.is_keeper else None
        disks = [set(steps) for steps in self.ranks.gather(here) if steps is not None]
        fitting = [found for found in set.intersection(*disks) if found <= step]
        return self.folder / step_name(max(fitting)) if fitting else None

    def set_back(self, step: int) -> None:
        """Remove the checkpoints after more than `step` steps, here and in the store: the run takes another way.

        Raises:
            StoreError: the store does not let them go; on every rank.
        """
        trouble = ""
        if self.neighbours.is_keeper:
            try:
                if self.uploads is not None:
                    self.uploads.uploader.set_back(step)
            except OSError as error:
                trouble = f"checkpoints of the time after step {step} could not be removed: {error}"
            for later in steps_in(self.folder, complete=True):
                if later > step:
                    remove(self.folder / step_name(later))
        troubles = [text for text in self.ranks.gather(trouble) if text]
        if troubles:
            raise StoreError(f"{troubles[0]}. Remove them by hand, then start again")
