"""The private parts of PyTorch that `torch_private.py` uses still do what they are used for."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.nn.functional import scaled_dot_product_attention

from trainer.engine import torch_private
from trainer.engine.torch_private import FakeTensorMode, TorchDispatchMode, tree_leaves

TENSORS = [torch.arange(6.0).reshape(2, 3) - 2, torch.tensor([3.0, -4.0]), torch.zeros(1)]


@pytest.fixture
def _timeouts_as_before() -> Iterator[None]:
    before = distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout
    yield
    distributed_c10d.default_pg_timeout, distributed_c10d.default_pg_nccl_timeout = before


@pytest.mark.usefixtures("_timeouts_as_before")
def test_a_group_made_without_a_timeout_gives_a_missing_rank_up_at_the_default() -> None:
    """Rank 1 of two never comes; without the default the first rank would wait for half an hour."""
    torch_private.set_default_timeout(timedelta(seconds=1))
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        group = dist.new_group([0])
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=1)
    finally:
        dist.destroy_process_group()
    assert distributed_c10d._get_default_timeout("nccl") == timedelta(seconds=1)


def test_norms_are_those_of_the_single_tensors() -> None:
    wanted = [sum(value**2 for value in tensor.flatten().tolist()) ** 0.5 for tensor in TENSORS]
    assert torch_private.norms(TENSORS).tolist() == pytest.approx(wanted)


def test_averages_move_by_a_share_and_copies_are_copies() -> None:
    averages, values = [torch.ones_like(tensor) for tensor in TENSORS], TENSORS
    torch_private.move_towards(averages, values, 0.25)
    for average, value in zip(averages, values, strict=True):
        torch.testing.assert_close(average, 0.75 + 0.25 * value)
    torch_private.copy_all(averages, values)
    assert all(torch.equal(average, value) for average, value in zip(averages, values, strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_step_that_is_to_be_skipped_changes_nothing(kind: type[torch.optim.Adam]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, weight_decay=0.1, fused=True)

    def step(skipped: float, grad: float) -> list[Any]:
        weight.grad = torch.full((3,), grad)
        torch_private.skip_step_where(optimizer, torch.tensor(skipped))
        optimizer.step()
        state = optimizer.state[weight]
        return [weight.tolist(), *(state[key].tolist() for key in ("step", "exp_avg", "exp_avg_sq"))]

    first = step(0.0, 1.0)
    assert first[0] != [1.0] * 3
    assert step(1.0, torch.nan) == first
    assert step(0.0, 1.0)[1] == 2.0


def test_fake_tensors_have_shapes_and_no_memory() -> None:
    with FakeTensorMode():
        product = torch.ones(10**6, 10**6) @ torch.ones(10**6, 1)  # 4 TB
    assert product.shape == (10**6, 1)


def test_a_dispatch_mode_sees_every_operator_with_its_arguments_and_result() -> None:
    seen: list[tuple[str, int]] = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            seen.append((func.overloadpacket.__name__, len(tensors)))
            return result

    with Looking():
        torch.mm(torch.ones(2, 2), torch.ones(2, 2)).add_(1.0)
    assert seen == [("ones", 1), ("ones", 1), ("mm", 3), ("add_", 2)]


def test_attention_on_a_processor_is_the_operator_of_that_name() -> None:
    called: list[Any] = []

    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    query = torch.ones(1, 2, 8, 16, requires_grad=True)
    with Looking():
        scaled_dot_product_attention(query, query, query).sum().backward()
    assert torch_private.CPU_ATTENTION in called
    assert torch_private.CPU_ATTENTION_BACKWARD in called
