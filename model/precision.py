"""Numbers that stay as exact as the network they are in: fp32 at least, and fp64 where it is in fp64.

So that the whole model can be held to fp64 results, which no processor's order of sums can change (docs/model.md).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def at_least_fp32(x: Tensor) -> Tensor:
    """16-bit numbers as fp32; fp32 and fp64 as they are."""
    return x if x.dtype is torch.float64 else x.float()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, or in a function that this decorates, fp32 products and convolutions on a GPU keep all bits of fp32.

    A training may let them round to TF32 (`tf32=true`), and torch lets convolutions do so unless told otherwise. What
    is reported must not depend on that.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


class ExactBuffers(nn.Module):
    """Base of modules whose buffers stay as exact as they are where a network is converted to 16 bits."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ExactBuffers":
        """Convert or move the module: `to`, `half`, `cuda` and the like all come here."""
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, exact in before.items():
            now = self.get_buffer(name)
            if now.dtype in (torch.bfloat16, torch.float16):
                setattr(self, name, exact.to(now.device))
        return self


class FixedTables(nn.Module):
    """Base of modules with tables of numbers that follow from a formula: buffers that no checkpoint holds.

    A table is fp32 until its module is converted. Conversion to fp64 brings back what fp32 had rounded away.
    """

    def register_table(self, name: str, exact: Tensor | None) -> None:
        """Make `exact` (float64 on the CPU, any shape; or nothing) the buffer `name`, on the default device."""
        self.__dict__.setdefault("_exact_tables", {})[name] = exact
        table = None if exact is None else exact.float().to(torch.get_default_device())
        self.register_buffer(name, table, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FixedTables":
        """Convert or move the module: `to`, `double`, `cuda` and the like all come here."""
        super()._apply(fn, recurse)
        tables: dict[str, Tensor | None] = self.__dict__.get("_exact_tables", {})
        for name, exact in tables.items():
            if exact is not None and self.get_buffer(name).dtype is torch.float64:
                self.get_buffer(name).copy_(exact)
        return self
