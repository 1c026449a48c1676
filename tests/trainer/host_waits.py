"""Counts where a training step would make the host wait for a GPU: seen on the CPU, where such a call costs nothing.

A call waits that synchronises the device, reads a value of a tensor on the host, or makes a tensor whose shape depends
on values. The step is one in which both networks learn and the adversarial term is on.
"""

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.trainer.cases import as_batch, global_batches, tiny_config
from trainer.autoencoder import Autoencoder
from trainer.distributed import Ranks
from trainer.garbage import collected_on_request

STAGES = (0, 1, 2, 3)

# DeepSpeed's own waits in one step, by ZeRO stage: no more of them may come in. At ZeRO 0 in 16 bits it looks at the
# gradient of every weight on its own; the generator has 89.
_UTILS, _ZERO_1_2 = "deepspeed/runtime/utils.py", "deepspeed/runtime/zero/stage_1_and_2.py"
_SHARDED = {f"{_UTILS}:is_invalid_grad_norm reads a value": 4, f"{_ZERO_1_2}:has_overflow reads a value": 1}
OF_DEEPSPEED: dict[int, dict[str, int]] = {
    0: {
        f"{_UTILS}:get_weight_norm reads a value": 2,
        f"{_UTILS}:has_overflow reads a value": 1,
        f"{_UTILS}:has_overflow_serial reads a value": 89,
    },
    1: _SHARDED,
    2: _SHARDED,
    3: {f"{_UTILS}:is_invalid_grad_norm reads a value": 3},
}

ROOT = Path(__file__).parents[2]
OURS = tuple(f"{ROOT / folder}/" for folder in ("trainer", "model", "data_pipeline"))

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default: "reads a value",
    aten.nonzero.default: "shape from values",
    aten.masked_select.default: "shape from values",
    aten._unique2.default: "shape from values",
    aten.equal.default: "reads a value",
}


def _who() -> str:
    """The innermost function of DeepSpeed or of this project on the stack, as file:function."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/deepspeed/" in file:
            return f"deepspeed/{file.rpartition('/deepspeed/')[2]}:{frame.f_code.co_name}"
        if file.startswith(OURS):
            return f"{Path(file).relative_to(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Reads(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READING:
            self.found[f"{_who()} {READING[func]}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Inside, every wait is counted by the function that makes it and by its kind."""
    from deepspeed.accelerator import get_accelerator

    found: Counter[str] = Counter()

    def noting(kind: str, then: Callable[..., Any]) -> Callable[..., Any]:
        def note(*args: Any, **kwargs: Any) -> Any:
            found[f"{_who()} {kind}"] += 1
            return then(*args, **kwargs)

        return note

    with ExitStack() as stack:
        accelerator = type(get_accelerator())
        stack.enter_context(mock.patch.object(accelerator, "synchronize", noting("synchronises", lambda *_: None)))
        for name in ("cpu", "tolist", "numpy"):  # on the CPU these call no operator
            stack.enter_context(mock.patch.object(Tensor, name, noting("copies to the host", getattr(Tensor, name))))
        stack.enter_context(_Reads(found))
        yield found


def waits(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """What one step of two micro-batches does at a ZeRO stage, in bf16.

    Returns:
        `waits`: what this rank waits for, and how often; `garbage`: the kinds of objects that a step leaves and that
        only Python's collector can free.
    """
    words = (f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}", "precision=bf16", "accumulation=2")
    at_once = ("gan.start=0", "gan.warmup=0", "gan.ramp=0")
    method = Autoencoder(tiny_config(str(directory), *words, *at_once, "ema.decay=0.75"), ranks)
    share = [as_batch(video.chunk(ranks.world_size)[ranks.rank]) for video in global_batches(3)]
    for step in range(2):
        method.step(share[step], step)
    with counted() as found:
        method.step(share[2], 2)
    with collected_on_request():
        terms = method.step(share[2], 2)
        del terms
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        garbage = [type(left).__name__ for left in gc.garbage]
        gc.set_debug(0)
        gc.garbage.clear()
    return {"waits": dict(found), "garbage": garbage}
