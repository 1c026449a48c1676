"""Encodes units of captions in a worker process, which keeps the encoder on its device from unit to unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from data_pipeline.build.scratch import scratch_folder
from data_pipeline.build.unit import UnitReport
from data_pipeline.dataset.plan import Dataset, Plan
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.text_records import TextSettings
from data_pipeline.store.open import open_store
from trainer.config.text_encoding import TextEncodingConfig
from trainer.engine.want_of_memory import batch_in_memory
from trainer.latents.encoder import SMALLER_BATCH, device_name, worker_device
from trainer.texts.encoder import TextEncoder, Tokenizer, encoder_digest, encoder_version, require_transformers
from trainer.texts.unit import encode_unit


@dataclass(frozen=True)
class TextJob:
    """All that a worker needs to know. It holds no credentials: each machine has its own."""

    config: TextEncodingConfig
    plan: Plan


class TextWorker:
    """Encodes units of one job. The encoder is opened with the first unit."""

    def __init__(self, job: TextJob) -> None:
        self._config = job.config
        self._dataset = Dataset(open_store(job.config.output), job.plan)
        self._rows = PlanRows(self._dataset)
        self._settings = TextSettings.of(job.plan.settings)

    def run(self, unit: int) -> UnitReport:
        """Encode and commit one unit.

        Raises:
            ValueError: this machine's encoder or programs are not those of the plan, or it has no GPU where one is
                asked for; or `encode.batch` captions together need more memory than there is.
            OSError, UnitConflict: as `encode_unit`.
        """
        tokenizer, encoder = self._opened
        with scratch_folder(self._config.run.scratch) as scratch:
            return encode_unit(
                self._dataset,
                unit,
                self._rows.unit(unit),
                tokenize=tokenizer.tokens,
                encode=partial(self._encoded, encoder),
                device=device_name(encoder.device),
                scratch=scratch,
            )

    def _encoded(self, encoder: TextEncoder, ids: Sequence[Sequence[int]]) -> list[Tensor]:
        batch = self._config.encode.batch
        with batch_in_memory(f"encode.batch={batch}", SMALLER_BATCH):
            return encoder.encode(ids, batch)

    @cached_property
    def _opened(self) -> tuple[Tokenizer, TextEncoder]:
        require_transformers()
        plan, config, folder = self._dataset.plan, self._config, Path(self._config.encoder)
        if encoder_version() != plan.encoder:
            raise ValueError(
                f"this worker has {encoder_version()}, and the plan was made with {plan.encoder}; install the same "
                "versions on all nodes"
            )
        found = encoder_digest(folder)
        if found != self._settings.encoder:
            raise ValueError(
                f"encoder={folder} is another encoder here ({found[:12]}) than in the plan "
                f"({self._settings.encoder[:12]}); let every node read the same directory"
            )
        torch.set_num_threads(config.encode.threads)
        device = worker_device(config.run)
        return Tokenizer(folder), TextEncoder(folder, device, config.encode.precision)
