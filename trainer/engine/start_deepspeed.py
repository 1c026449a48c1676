"""DeepSpeed imported and its process groups started, without its noise."""

from __future__ import annotations

import contextlib
import gc
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import torch


def start_deepspeed() -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed 0.19 calls collectives by names that torch 2.13 is renaming.
    warnings.filterwarnings("ignore", message=".*is deprecated.*", category=FutureWarning, module="torch.distributed")
    import_deepspeed()
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Where it finds a compiler, DeepSpeed would build a shared-memory all-reduce for the CPU now; gloo needs none.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def import_deepspeed() -> None:
    """Import DeepSpeed, and what it and torch would import when the first engine is built.

    Every engine imports Muon, which no run here can choose. Three functions of it go to torch.compile while they are
    defined, and that alone would import all of torch._inductor: 1.5 s.
    """
    if "deepspeed.runtime.zero.muon.original_muon" in sys.modules:
        return
    # DeepSpeed tries the compiler for extensions that we do not use, and the linker complains.
    with lasting(), _silent_stderr():
        importlib.import_module("deepspeed")
        importlib.import_module("torch._dynamo")
        compiler = torch.compile
        torch.compile = lambda function: function  # type: ignore[assignment]
        try:
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
        finally:
            torch.compile = compiler


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


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is imported inside is never looked at by the collector, which rests meanwhile; all that exists joins it."""
    at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if at_work:
            gc.enable()
