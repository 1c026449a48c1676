"""Encodes units in a worker process, which keeps the model on its device from unit to unit."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from data_pipeline.build.scratch import scratch_folder
from data_pipeline.build.unit import UnitReport
from data_pipeline.dataset.latent_records import LatentSettings
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.latents.clips import ClipReader, opened_shard
from data_pipeline.outside.naming import naming
from data_pipeline.store.open import open_store
from trainer.config.encoding import EncodingConfig
from trainer.latents.encoder import (
    WindowEncoder,
    device_name,
    encoder_version,
    identify,
    model_directory,
    worker_device,
)
from trainer.latents.unit import encode_nothing, encode_unit


@dataclass(frozen=True)
class EncodeJob:
    """All that a worker needs to know. It holds no credentials: each machine has its own."""

    config: EncodingConfig
    plan: Plan


class EncodeWorker:
    """Encodes units of one job. The model is opened with the first unit that has clips."""

    def __init__(self, job: EncodeJob) -> None:
        self._config = job.config
        self._dataset = Dataset(open_store(job.config.output), job.plan)
        self._source = open_store(job.config.shards)
        self._rows = PlanRows(self._dataset)
        self._settings = LatentSettings.of(job.plan.settings)
        self._fps = Fraction(self._settings.fps).limit_denominator(1001)

    def run(self, unit: int) -> UnitReport:
        """Encode and commit one unit.

        Raises:
            ValueError: this machine's model or programs are not those of the plan, or it has no GPU where one is asked
                for; or `encode.batch` windows together need more memory than there is.
            FileNotFoundError: the source shard is gone.
            OSError, UnitConflict: as `encode_unit`.
        """
        rows = self._rows.unit(unit)
        config = self._config
        with scratch_folder(config.run.scratch) as scratch:
            if not rows:  # its source shard was replaced before its clips were encoded
                return encode_nothing(self._dataset, unit)
            name = self._dataset.plan.segment_of(unit).name
            with opened_shard(self._source, name, scratch) as shard:
                reader = ClipReader(shard, self._settings.windows, self._fps)
                return encode_unit(
                    self._dataset,
                    unit,
                    rows,
                    read=reader.read,
                    encode=self._encoder.encode,
                    batch=config.encode.batch,
                    decoders=config.run.decoders,
                    device=device_name(self._encoder.device),
                    scratch=scratch,
                )

    @cached_property
    def _encoder(self) -> WindowEncoder:
        plan = self._dataset.plan
        if encoder_version() != plan.encoder:
            raise ValueError(
                f"this worker has {encoder_version()}, and the plan was made with {plan.encoder}; install the same "
                "versions on all nodes"
            )
        device = worker_device(self._config.run)
        with naming("model="), model_directory(self._config.model) as folder:
            found = identify(folder).weights
            if found != self._settings.weights:
                raise ValueError(
                    f"model={self._config.model} has other weights here ({found[:12]}) than the plan "
                    f"({self._settings.weights[:12]}); let every node read the same model directory"
                )
            return WindowEncoder(folder, device, self._config.encode, logvar=self._config.stored.logvar)
