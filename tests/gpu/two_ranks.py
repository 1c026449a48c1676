"""Two ranks on one device over gloo, because NCCL refuses two ranks on one GPU: the arithmetic of ranks on CUDA.

python -m tests.gpu.two_ranks CONTEXT        # one rank, started by `run`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from tests.gpu.findings import Context, held, relative
from tests.gpu.small_model import TERMS, small_config, train
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks, free_port

STAGES = (0, 1)


def run(context: Context) -> None:
    alone = start(context, 1)
    both = start(context, 2)
    for stage in map(str, STAGES):
        for term in TERMS:
            pairs = list(zip(alone[stage], both[stage], strict=True))
            apart = max(relative(row[term], other[term]) for row, other in pairs)
            held(f"ZeRO {stage} on two ranks: {term}", apart, 5e-4, "one rank")


def start(context: Context, ranks: int) -> dict[str, list[dict[str, float]]]:
    """Start ranks, and return what the first one has written: terms of each step by stage."""
    result = context.folder / f"{ranks}.json"
    small_config(context.folder)  # makes the initial weights, before two ranks would
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    address |= {"LOCAL_RANK": "0", "LOCAL_SIZE": str(ranks)}
    command = [sys.executable, "-m", "tests.gpu.two_ranks", str(context.folder / "context.json"), str(result)]
    processes = [subprocess.Popen(command, env=os.environ | address | {"RANK": str(rank)}) for rank in range(ranks)]
    try:
        for process in processes:
            if process.wait(120):
                raise RuntimeError(f"one of {ranks} ranks ended with status {process.returncode}")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    rows: dict[str, list[dict[str, float]]] = json.loads(result.read_text())
    return rows


def one_rank(context: Context, result: Path) -> None:
    """A rank's part. On a GPU, gloo takes NCCL's place."""
    begin = dist.init_process_group

    def over_gloo(backend: str, **options: Any) -> None:
        options.pop("device_id", None)  # gloo is bound to no device
        begin("cpu:gloo,cuda:gloo" if backend == "nccl" else backend, **options)

    with patch.object(dist, "init_process_group", over_gloo):
        # Both ranks share the first GPU, which `own_device` would refuse.
        ranks = distributed.start(2, torch.device("cuda", 0) if context.on_gpu else torch.device("cpu"))
    try:
        found = {str(stage): train(method_at(context, ranks, stage), ranks) for stage in STAGES}
        if ranks.is_main:
            result.write_text(json.dumps(found))
    finally:
        distributed.stop()


def method_at(context: Context, ranks: Ranks, stage: int) -> Autoencoder:
    return Autoencoder(small_config(context.folder, f"zero.stage={stage}"), ranks)


if __name__ == "__main__":
    one_rank(Context.read(Path(sys.argv[1])), Path(sys.argv[2]))
