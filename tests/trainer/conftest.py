"""A process group of one, for what needs ranks but no DeepSpeed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.trainer.chained import chained
from trainer.distributed import Ranks

__all__ = ["alone", "chained"]


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """The only rank there is."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks(0, 1, 0, torch.device("cpu"), dist.new_group(backend="gloo"))
    dist.destroy_process_group()
