"""How many bytes of tensors `Engine.save` writes on one rank, estimated from shapes; measured with DeepSpeed 0.19.8.

Per element of this rank's fp32 masters 12 bytes: the master and Adam's two moments. Besides, rank 0 writes the working
weights, as wide as the precision; at ZeRO 0 in fp32 they are the masters themselves. At ZeRO 3 no rank writes working
weights. From ZeRO 2 on, DeepSpeed writes the weights that do not learn a second time.
"""

from __future__ import annotations

from trainer.engine.deepspeed_private import whole_shape
from trainer.engine.engine import Engine

MASTER, MOMENTS = 4, 8


def saved_bytes(engine: Engine, rank: int, ranks: int) -> int:
    """Bytes of the tensors of one engine that a rank saves; at ZeRO 0 only rank 0 saves any.

    Args:
        rank, ranks: this rank, and how many there are.
    """
    learning = frozen = 0
    for weight in engine.module.parameters():
        count = 1
        for size in whole_shape(weight):
            count *= size
        learning, frozen = (learning + count, frozen) if weight.requires_grad else (learning, frozen + count)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in engine.module.buffers())
    share = sum(master.numel() for master in engine.masters())
    return bytes_of_counts(
        stage=engine.stage,
        rounded=engine.rounded,
        learning=learning,
        frozen=frozen,
        buffers=buffers,
        share=share,
        rank=rank,
        ranks=ranks,
    )


def bytes_of_counts(
    *, stage: int, rounded: bool, learning: int, frozen: int, buffers: int, share: int, rank: int, ranks: int
) -> int:
    """Bytes of the tensors of one network that a rank saves, from numbers of elements alone.

    Args:
        stage: ZeRO stage.
        rounded: the working weights have 16 bits, so that the masters are apart from them.
        learning, frozen: elements of the weights that learn, and of those that do not.
        buffers: bytes of the buffers.
        share: elements of the fp32 masters that this rank holds.
        rank, ranks: this rank, and how many there are.
    """
    width = 2 if rounded else 4
    if stage == 3:
        return buffers + width * -(-frozen // ranks) + (MASTER + MOMENTS) * share
    main = buffers + width * (learning + frozen)
    if stage == 0:
        return main + share * (MASTER + MOMENTS if rounded else MOMENTS) if rank == 0 else 0
    if stage == 2:
        main += width * frozen
    return (main if rank == 0 else 0) + (MASTER + MOMENTS) * share
