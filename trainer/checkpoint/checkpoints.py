"""Checkpoints that are complete or absent.

    OUTPUT/checkpoints/step-00001000/
        generator/ discriminator/   DeepSpeed's files of each engine
        method.pt ema-00000.pt ...  the method's own state, and each rank's shard of the moving average
        rng-00000.pt ...            the random generators of each rank
        state.json config.yaml      step, loader position, ranks, ZeRO stage, program; the resolved configuration
        COMPLETE                    written last, after every file has reached the disk: their sizes and sha256

No reader looks at a directory without COMPLETE, and the next start or save removes it. OUTPUT must lie on storage that
every rank sees, unless `checkpoint.upload` is set: then each node's directory holds the files of its own ranks, and
`newest` fetches the others from the store.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.read.loader import Position
from data_pipeline.store.base import StoreError
from model.provenance import Provenance, Weights
from trainer.checkpoint.exports import provenance_of
from trainer.checkpoint.files import is_complete, read_state, remove, set_aside, step_name, steps_in
from trainer.checkpoint.fork import Parent
from trainer.checkpoint.joint_upload import JointUpload
from trainer.checkpoint.resume import Candidates
from trainer.checkpoint.retention import Best, Retention
from trainer.checkpoint.same_run import check_same_run, unused_init_from
from trainer.checkpoint.shared_disks import find_shared_disks
from trainer.checkpoint.upload import Remote
from trainer.checkpoint.writer import Saved, Writer
from trainer.config.run import RunConfig
from trainer.config.running import NEVER
from trainer.distributed import Ranks
from trainer.engine.saved_files import load_saved
from trainer.method import Loader, Method
from trainer.randomness import seed_everything, set_rng_state


def _nothing() -> None:
    pass


class Checkpoints:
    """The checkpoints of one run. Every rank makes every call."""

    def __init__(self, config: RunConfig, ranks: Ranks, say: Callable[[str], None] = print) -> None:
        self.config, self.ranks, self.say = config, ranks, say
        self.settings, self.retention = config.checkpoint, Retention(config.checkpoint)
        self.folder = Path(config.output) / "checkpoints"
        self.shared_disks = find_shared_disks(ranks, self.folder)
        self.remote: Remote | None = None
        self.uploads: JointUpload | None = None
        self._metrics: dict[str, float] = {}
        if self.settings.upload:
            self.remote = Remote(self.settings.upload)
            self.uploads = JointUpload(self.retention, self.remote, self.folder, ranks, self.shared_disks, say)
        elif self.shared_disks.apart:
            groups = ", ".join("/".join(map(str, group)) for group in self.shared_disks.groups)
            raise ValueError(
                f"output={config.output} is not the same directory on all nodes (ranks that share one: {groups}); put "
                "it on storage that every rank sees, or set checkpoint.upload=s3://BUCKET/RUN"
            )
        uploading = self.uploads.busy if self.uploads is not None else list
        self.writer = Writer(config, ranks, self.shared_disks, self.folder, self.retention, uploading, say)

    # ---- writing --------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        position: Position,
        method: Method[Any],
        loader: Loader[Any],
        *,
        wait: bool = False,
        best: Best | None = None,
    ) -> Path:
        """Save the state after `step` steps, and remove the checkpoints that it replaces.

        When this method returns, training may go on. The checkpoint is complete then, or it is in host memory and
        threads complete it. It is uploaded afterwards if `checkpoint.upload` is set. A save that is still on its way is
        waited for first.

        Args:
            wait: return only when the checkpoint is complete; to be set where nothing follows.
            best: the checkpoint is the best so far, as `retention.better` has found.
        Raises:
            RuntimeError: the disk is full or cannot be written; the message names it.
        """
        begin = time.monotonic()
        self.settle()
        if best is not None:
            self.retention.add(best)
        self._completed(self.writer.write(step, position, method, loader, wait))
        self._metrics["save_seconds"] = time.monotonic() - begin
        return self.folder / step_name(step)

    def poll(self) -> None:
        """See whether the checkpoint that is in host memory is complete by now, and upload it; call it at every step.

        Raises:
            RuntimeError: some rank could not write its files; raised on every rank.
        """
        self._completed(self.writer.advance(wait=False))

    def settle(self) -> None:
        """Wait until the checkpoint that is in host memory, if there is one, is complete.

        Raises:
            RuntimeError: as `poll`.
        """
        self._completed(self.writer.advance(wait=True))

    def close(self) -> None:
        """Give back the memory of a save that was not completed, because an error ends the run; waits for no rank."""
        self.writer.close()

    def _completed(self, saved: Saved | None) -> None:
        if saved is None:
            return
        if self.uploads is not None:
            self.uploads.saved(saved.step)
        self._metrics |= {"save_bytes": float(saved.size), "save_complete_seconds": saved.seconds}

    def remove_leftovers(self) -> None:
        """Remove the saves that were cut off, because they may be what fills the disk or the memory."""
        self.writer.remove_leftovers()

    def finish(self, stop_requested: Callable[[], bool], looks: Callable[[], None] = _nothing) -> bool:
        """Complete the last checkpoint, and wait a bounded time for its upload. Every rank calls it after training.

        Args:
            stop_requested: whether this rank has been asked to stop; the wait is shorter then.
            looks: called before each look at the upload, which is soon followed by the next.
        Returns:
            On every rank, whether the upload was left to the next start because a rank was asked to stop.
        """
        self.settle()
        if self.uploads is None:
            return False
        left = self.uploads.finish(stop_requested, looks)
        if self.shared_disks.is_keeper:
            self.writer.prune()  # removes what had to stay during the upload
        self.ranks.barrier()
        return left

    def take_metrics(self) -> dict[str, float]:
        """Metrics of the saves and uploads since the last call: save_seconds, save_bytes, upload_seconds, ..."""
        metrics, self._metrics = self._metrics, {}
        return metrics | self.uploads.take_metrics() if self.uploads is not None else metrics

    # ---- reading --------------------------------------------------------------------------------------------------

    def newest(self) -> Path | None:
        """The newest undamaged checkpoint, or None; the same on every rank. It is made complete on every disk.

        With `checkpoint.resume=STEP` it is the checkpoint of that step, unless the run has gone back to it before.

        Raises:
            ValueError: a checkpoint exists although checkpoint.resume=never; the one of checkpoint.resume=STEP does not
                exist or is damaged, or the store holds later ones; or every checkpoint is damaged.
            StoreError: the store does not answer, and the disk holds no checkpoint.
        """
        candidates = Candidates(self.ranks, self.shared_disks, self.folder, self.remote, self.say)
        steps = candidates.list_steps()
        if steps and self.settings.resume == NEVER:
            place = self.folder if steps[-1] in candidates.local else self.settings.upload
            raise ValueError(
                f"{place} holds {step_name(steps[-1])} and checkpoint.resume=never; choose another output, remove it, "
                "or set checkpoint.resume=auto to go on from it"
            )
        newest = candidates.newest(candidates.step_to_go_back_to(self.settings))
        if self.uploads is not None:
            self.uploads.begin(candidates.stored, candidates.cut_off)
        return newest

    def abandon_later(self, step: int) -> None:
        """Rename the checkpoints of later steps where `checkpoint.resume` takes the run back to `step`."""
        goes_back = self.settings.resume_step is not None and self.shared_disks.is_keeper
        for later in steps_in(self.folder, complete=True) if goes_back else []:
            if later > step:
                directory = self.folder / step_name(later)
                aside = set_aside(directory, "abandoned")
                self.say(f"{directory} is now {aside}, because the run goes back to step {step}; nothing removes it")
        self.ranks.barrier()

    def check(self, directory: Path, loader: Loader[Any]) -> str:
        """Refuse to go on from `directory` if the result would not be the same run, and prepare the loader for it.

        Returns:
            A line about data that were added since, or an empty text.

        Raises:
            ValueError: the checkpoint is of another model, data order or dataset.
        """
        state = read_state(directory)
        check_same_run(directory, self.config)
        if self.ranks.is_main and (remark := unused_init_from(directory, self.config)):
            self.say(remark)
        return loader.continue_from(state["order"], Position(state["epoch"], state["consumed"]))

    def load(self, directory: Path, method: Method[Any]) -> tuple[int, Position]:
        """Load the states of the method and of the random generators from `directory`, which `check` let pass.

        Returns:
            The number of steps done and the loader's position.
        """
        state = read_state(directory)
        self.writer.forked_from = state.get("forked_from")
        self.retention.restore(self._best_of(state))
        method.load(directory)
        generators = directory / f"rng-{self.ranks.rank:05d}.pt"
        if generators.is_file():
            set_rng_state(load_saved(generators, mapped=False))
        else:  # the checkpoint is of fewer ranks, so this rank has no saved generators
            seed_everything(self.config.seed, self.ranks.rank, state["step"])
        self.ranks.barrier()
        if self.uploads is not None:
            self.uploads.start_missing()  # an interrupted run may have left checkpoints that the store lacks
        return state["step"], Position(state["epoch"], state["consumed"])

    def _best_of(self, state: dict[str, Any]) -> Best | None:
        """The best checkpoint as a checkpoint says it, if this run still has it; the same on every rank."""
        best = Best(**state["best"]) if "best" in state else None
        kept = best is not None and is_complete(self.folder / step_name(best.step))
        return best if self.ranks.broadcast(kept) else None

    @property
    def forked_from(self) -> dict[str, Any] | None:
        """Where a fork comes from, which every checkpoint of it says; None in a run that is no fork."""
        return self.writer.forked_from

    def begin_fork(self, parent: Parent, position: Position, method: Method[Any], loader: Loader[Any]) -> None:
        """Save the state that was loaded from the parent as this run's own first checkpoint."""
        self.writer.forked_from = parent.facts
        self.save(parent.step, position, method, loader, wait=True)

    def provenance(self, step: int) -> Provenance:
        """Where the weights of the checkpoint after `step` steps come from; the same on every rank."""
        checkpoint = self.folder / step_name(step)
        found: Provenance = self.ranks.broadcast(provenance_of(checkpoint, Weights.raw) if self.ranks.is_main else None)
        return found

    def before(self, step: int) -> Path | None:
        """The newest complete checkpoint after at most `step` steps, or None; the same on every rank."""
        self.settle()
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
