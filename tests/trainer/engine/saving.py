"""One of two ranks that save engines of every kind, and compare the files with what is estimated (test_saved_bytes.py).

RANK=r ... python -m tests.trainer.engine.saving DIRECTORY
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks

WIDER = ("model.width=192", "model.heads=6", "discriminator.width=32", "gan.start=0", "gan.warmup=0", "gan.ramp=1")
CASES: dict[str, list[str]] = {
    **{f"fp32, ZeRO {stage}": [f"zero.stage={stage}", "ema.decay=0.9"] for stage in (0, 1, 3)},
    **{f"bf16, ZeRO {stage}": [f"zero.stage={stage}", "precision=bf16"] for stage in (0, 2, 3)},
    "discriminator divided": ["zero.stage=2", "zero.discriminator_stage=1"],
}


def estimated_and_written(ranks: Ranks, *words: str) -> list[tuple[int, int]]:
    """By rank: what is estimated, and the bytes of the files that it writes after a step."""
    method = Autoencoder(tiny_config("unused", *WIDER, *words), ranks)
    share = 4 // ranks.world_size
    method.step(as_batch(global_batches()[0][ranks.rank * share : (ranks.rank + 1) * share]), 0)
    with tempfile.TemporaryDirectory() as name:
        method.save(Path(name))
        written = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
    return ranks.gather((method.saved_bytes, written))


def main(folder: Path) -> None:
    ranks = distributed.start(5)
    rows = {name: estimated_and_written(ranks, *words) for name, words in CASES.items()}
    Autoencoder(tiny_config("unused", *WIDER), ranks).export(folder / "model")
    ranks.barrier()
    words = (f"init_from={folder / 'model'}", "freeze=encoder", "precision=bf16")
    rows |= {f"frozen, ZeRO {stage}": estimated_and_written(ranks, *words, f"zero.stage={stage}") for stage in (2, 3)}
    if ranks.is_main:
        (folder / "rows.json").write_text(json.dumps(rows))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
