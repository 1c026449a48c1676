"""DeepSpeed imported and its process groups started, without its noise."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from trainer.engine.deepspeed_private import forget_nvml, switch_shared_memory_off
from trainer.engine.device import gpus_have_names


def start_deepspeed() -> None:
    """Import DeepSpeed and start its process groups; torch's own group must exist already."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is renaming.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning, module="torch.distributed")
    import_deepspeed()
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    switch_shared_memory_off()
    if gpus_have_names():
        forget_nvml()
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def deepspeed_version() -> str:
    """The version of DeepSpeed, without importing it."""
    return importlib.metadata.version("deepspeed")


def import_deepspeed() -> None:
    """Import DeepSpeed in silence: it tries the compiler for extensions that no run uses, and the linker complains."""
    with _silent_stderr():
        importlib.import_module("deepspeed")


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Throw away what this process and its children write to standard error; exceptions pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
