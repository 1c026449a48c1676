"""One of two gloo ranks that runs many small trainings in one process group, because starting DeepSpeed takes seconds.

    RANK=r WORLD_SIZE=2 ... python -m tests.trainer.two_ranks DIRECTORY [--quick] [NAME ...]

--quick leaves out what only the slow tests look at. Rank 0 leaves its findings in DIRECTORY/results.pt;
test_two_ranks.py holds them against the reference.
"""

import gc
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from tests.trainer import exact_start, half, host_waits, noisy
from tests.trainer.cases import as_batch, global_batches, mixed_batches, tiny_config, tiny_recipe
from tests.trainer.faults import watched
from tests.trainer.reference import Recipe
from trainer import distributed
from trainer.autoencoder import Autoencoder
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks

TIMEOUT_MINUTES = 1.0
COMBINATIONS = [(stage, accumulation) for stage in (0, 1, 2, 3) for accumulation in (1, 2)]

OFFLOADED = [(1, "optimizer"), (2, "optimizer"), (3, "parameters")]
OVERLAPPED = [(1, 2), (2, 2)]
DEEPER = ("model.depth=2",)
"""Of one block in each half, every second one is all of them."""
RECOMPUTED = [(2, "selective"), (3, "selective"), (0, "full"), (3, "every")]
OBSERVED = [(0, "fp32"), (1, "bf16"), (2, "fp32"), (3, "fp32")]
FROZEN = [(0, "fp32"), (1, "bf16"), (3, "fp32"), (3, "bf16")]

MIXED = [0, 3]

STEERED = [(0, "fp32"), (1, "bf16"), (3, "fp32"), (3, "bf16")]
STEERING: dict[str, Any] = {"kl_warmup": 4, "logvar": 0.25, "learn_logvar": False, "generator_loss": "non_saturating"}

DECAYED = [0, 1, 2, 3]
DECAY = 3.0
"""Weight decay that changes a weight by 3e-3 of itself in a step, which no rounding hides."""

OWN: dict[str, dict[str, Any]] = {
    "generator": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.01},
    "discriminator": {"name": "adam", "lr": 6e-4, "betas": [0.5, 0.9], "eps": 1e-9, "weight_decay": 0.02},
}
"""Settings of the two optimizers, no two alike."""

# What `make test` leaves out: a neighbouring stage shows nearly the same.
SLOW = (
    *("recompute stage 0", "bf16 stage 0", "bf16 stage 1", "average stage 1", "average stage 2", "broken stage 1"),
    *("broken stage 3", "offload stage 1", "offload stage 2", "frozen stage 1", "frozen stage 3 fp32"),
    *("suspects stage 1", "half stage 2", "half stage 3"),
    *("mixed frames stage 0", "recompute stage 2", "decay stage 1", "decay stage 2", "steered stage 1"),
    *("steered stage 3 bf16", "observed stage 0", "observed stage 2", "frozen stage 3 bf16", "half stage 1"),
    *("recompute stage 3 every", "deeper", "decay stage 0", "suspects stage 0"),
    *("evaluated stage 2", "bf16 stage 2", "steered stage 3 fp32", "evaluated stage 3", "average stage 3"),
    *("exact start stage 0 fp16", "exact start stage 1", "exact start stage 2 bf16", "exact start stage 3 fp16"),
    *("exact start stage 3 bf16 nothing", "exact start stage 3 bf16 parameters", "exact start stage 2 fp16 nothing"),
    *("waits stage 0", "waits stage 1", "stage 1 accumulation 2", "overlap stage 1"),
    *("waits stage 2", "stage 0 accumulation 2", "stage 3 accumulation 2", "observed stage 1", "broken stage 0"),
    *("decay stage 3", "mixed frames stage 3", "micro-batch 1"),
)


def decaying_recipe() -> Recipe:
    """Only matrices decay, and fast."""
    return tiny_recipe(decay="matrices", weight_decay=DECAY)


def share(video: Tensor, ranks: Ranks) -> Tensor:
    """This rank's clips of a global batch."""
    return video.chunk(ranks.world_size)[ranks.rank]


def steps(method: Autoencoder, ranks: Ranks, batches: list[Tensor], first: int = 0) -> list[dict[str, float]]:
    """Train on global batches from step `first`; terms averaged over ranks."""
    rows = []
    for step, video in enumerate(batches, start=first):
        terms = method.step(as_batch(share(video, ranks)), step)
        table = torch.stack([terms[name] for name in sorted(terms)])
        dist.all_reduce(table)
        rows.append(dict(zip(sorted(terms), (table / ranks.world_size).tolist(), strict=True)))
    return rows


def weights(method: Autoencoder) -> dict[str, Tensor]:
    """Full fp32 weights of both networks."""
    assert method.discriminator is not None
    return method.generator.full_state() | method.discriminator.full_state()


def zero_stage(directory: Path, ranks: Ranks, stage: int, accumulation: int, *more: str) -> dict[str, Any]:
    """One ZeRO stage x accumulation; with accumulation 1 also saved half-way, and the second half resumed."""
    words = (f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}", f"accumulation={accumulation}")
    config = tiny_config(str(directory), *words, *more)
    method = Autoencoder(config, ranks)
    initial = weights(method)
    rows = steps(method, ranks, global_batches()[:3])
    folder = directory / "-".join(["saved", str(stage), *(word.partition("=")[2].replace("/", ".") for word in more)])
    if accumulation == 1:
        if ranks.is_main:
            folder.mkdir()
        ranks.barrier()
        method.save(folder)
    rows += steps(method, ranks, global_batches()[3:], first=3)
    result = {"initial": initial, "rows": rows, "final": weights(method)}
    if accumulation == 1:
        resumed = Autoencoder(config, ranks)
        resumed.load(folder)
        result["resumed"] = steps(resumed, ranks, global_batches()[3:], first=3)
        result["resumed_final"] = weights(resumed)
    return result


def plain(ranks: Ranks, config: TrainConfig, batches: list[Tensor] | None = None) -> dict[str, Any]:
    """One training from start to end."""
    return training(Autoencoder(config, ranks), ranks, batches or global_batches())


def training(method: Autoencoder, ranks: Ranks, batches: list[Tensor]) -> dict[str, Any]:
    """All steps of a training, and its weights before and after them."""
    initial = weights(method)
    return {"initial": initial, "rows": steps(method, ranks, batches), "final": weights(method)}


def moving_average(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """The generator's weights after each of three steps, their moving average, and the weights after it was read."""
    words = (f"zero.stage={stage}", "ema.decay=0.75", "gan.weight=0", "accumulation=2")
    method = Autoencoder(tiny_config(str(directory), *words), ranks)
    assert method.ema is not None
    history = [method.generator.full_state()]
    for step, video in enumerate(global_batches()[:3]):
        method.step(as_batch(share(video, ranks)), step)
        history.append(method.generator.full_state())
    with method.ema.applied():
        average = method.generator.full_state()
    return {"weights": history, "average": average, "after": method.generator.full_state()}


def offloaded(directory: Path, ranks: Ranks, stage: int, what: str) -> dict[str, Any]:
    """A training with state in host memory, and what DeepSpeed says it keeps there: on the CPU all memory is that."""
    words = (f"zero.stage={stage}", "zero.offload_optimizer=true", f"zero.offload_parameters={what == 'parameters'}")
    config = tiny_config(str(directory), *words, "zero.bucket=5000", "ema.decay=0.75")
    method = Autoencoder(config, ranks)
    keeper = method.generator.engine.optimizer
    kept = {"optimizer"} if (keeper.offload_optimizer if stage == 3 else keeper.cpu_offload) else set()
    kept |= {"parameters"} if stage == 3 and keeper.offload_param else set()
    return training(method, ranks, global_batches()) | {"kept": sorted(kept)}


def observed(directory: Path, ranks: Ranks, stage: int, precision: str) -> dict[str, Any]:
    """Three steps of two micro-batches, the last of them observed, with the weights before it and after it."""
    words = (f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}", f"precision={precision}")
    method = Autoencoder(tiny_config(str(directory), *words), ranks)
    rows = steps(method, ranks, global_batches()[:2])
    before = method.generator.full_state()
    terms = method.step(as_batch(share(global_batches()[2], ranks)), 2, observed=True)
    table = torch.stack([terms[name].float() for name in terms])
    dist.all_reduce(table)
    rows.append(dict(zip(terms, (table / ranks.world_size).tolist(), strict=True)))
    return {"rows": rows, "own": {name: float(value) for name, value in terms.items()}, "before": before} | {
        "after": method.generator.full_state()
    }


def own_settings(directory: Path, ranks: Ranks) -> dict[str, dict[str, Any]]:
    """What the optimizers worked with in the first step of both networks, and how far that moved a weight at most."""
    words = [
        f"optim.{network}.{key}={value}".replace(" ", "") for network in OWN for key, value in OWN[network].items()
    ]
    words += ["optim.generator.warmup=0", "optim.discriminator.warmup=0", "gan.start=0"]
    method = Autoencoder(tiny_config(str(directory), *words), ranks)
    before = weights(method)
    method.step(as_batch(share(global_batches()[0], ranks)), 0)
    moved = {name: float((value - before[name]).abs().max()) for name, value in weights(method).items()}
    found = {}
    for engine in (method.generator, method.discriminator):
        assert engine is not None
        (group,) = engine.engine.optimizer.param_groups
        settings = {key: group[key] for key in ("lr", "eps", "weight_decay")} | {"betas": list(group["betas"])}
        settings["name"] = "adamw" if group["decoupled_weight_decay"] else "adam"
        settings["moved"] = max(moved[name] for name, _ in engine.module.named_parameters())
        found[engine.name] = settings
    return found


def timeouts() -> list[float]:
    """Seconds after which each process group that this rank is in, whoever made it, gives the other ranks up."""
    groups = [group._get_backend(torch.device("cpu")) for group in distributed_c10d._world.pg_map]
    return [group.options._timeout.total_seconds() for group in groups]


def pictures(directory: Path, ranks: Ranks) -> dict[str, Any]:
    """Pictures taken before and in the middle of a ZeRO-3 training, and the training."""
    method = Autoencoder(tiny_config(str(directory), "zero.stage=3", "zero.discriminator_stage=1"), ranks)
    batches = global_batches()[:4]
    method.pictures(as_batch(share(batches[0], ranks)), 2)
    rows = steps(method, ranks, batches[:2])
    shown = method.pictures(as_batch(share(batches[0], ranks)), 2)["samples_batch"]
    state = method.generator.full_state()
    return {"shown": shown, "state": state, "rows": rows + steps(method, ranks, batches[2:], first=2)}


def frozen_encoder(directory: Path, ranks: Ranks, stage: int, precision: str) -> dict[str, Any]:
    """Only the decoder half learns, from an exported model that is the start of the other trainings."""
    start = directory / "start"
    if not start.is_dir():
        ranks.barrier()
        Autoencoder(tiny_config(str(directory)), ranks).export(start)
        ranks.barrier()
    return zero_stage(directory, ranks, stage, 1, "freeze=encoder", f"precision={precision}", f"init_from={start}")


def broken_batch(directory: Path, ranks: Ranks, stage: int) -> dict[str, Any]:
    """A NaN in the second batch of the last rank only."""
    method = Autoencoder(tiny_config(str(directory), f"zero.stage={stage}", "gan.start=0"), ranks)
    batches = [video.clone() for video in global_batches()[:3]]
    batches[1][-1, 0, 0, 0, 0] = torch.nan
    rows = steps(method, ranks, batches[:1])
    before = weights(method)
    rows += steps(method, ranks, batches[1:2], first=1)
    after = weights(method)
    return {"before": before, "after": after, "rows": rows + steps(method, ranks, batches[2:], first=2)}


def scenarios(directory: Path, ranks: Ranks) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything there is to run, by name."""

    def whole(*words: str, recipe: Recipe | None = None) -> Callable[[], dict[str, Any]]:
        return lambda: plain(ranks, tiny_config(str(directory), *words, recipe=recipe))

    def recompute(stage: int, mode: str) -> Callable[[], dict[str, Any]]:
        words = (f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}")
        return whole(*words, f"activation_checkpointing.mode={mode}", *(DEEPER if mode == "every" else ()))

    runs: dict[str, Callable[[], dict[str, Any]]] = {}
    for stage, accumulation in COMBINATIONS:
        runs[f"stage {stage} accumulation {accumulation}"] = partial(zero_stage, directory, ranks, stage, accumulation)
        if (stage, accumulation) in OVERLAPPED:  # before a run at ZeRO 3, whose linear layer rounds one clip otherwise
            words = (f"zero.stage={stage}", "zero.discriminator_stage=1", f"accumulation={accumulation}")
            runs[f"overlap stage {stage}"] = whole(*words, "zero.overlap_comm=true", "zero.bucket=5000")
    for stage, precision in OBSERVED:
        runs[f"observed stage {stage} {precision}"] = partial(observed, directory, ranks, stage, precision)
    for stage in (0, 1, 2, 3):
        runs[f"bf16 stage {stage}"] = whole(f"zero.stage={stage}", "precision=bf16")
        runs[f"average stage {stage}"] = partial(moving_average, directory, ranks, stage)
        runs[f"broken stage {stage}"] = partial(broken_batch, directory, ranks, stage)
    runs["deeper"] = whole("zero.stage=3", "zero.discriminator_stage=1", *DEEPER)
    for stage, mode in RECOMPUTED:  # after a run at ZeRO 3, which replaces PyTorch's linear layer for the whole process
        runs[f"recompute stage {stage} {mode}"] = recompute(stage, mode)
    for stage, what in OFFLOADED:
        runs[f"offload stage {stage} {what}"] = partial(offloaded, directory, ranks, stage, what)
    for stage, precision in FROZEN:
        runs[f"frozen stage {stage} {precision}"] = partial(frozen_encoder, directory, ranks, stage, precision)
    for stage in half.HALF:
        runs[f"half stage {stage}"] = partial(half.in_half, directory, ranks, stage)
    for stage in host_waits.STAGES:
        runs[f"waits stage {stage}"] = partial(host_waits.waits, directory, ranks, stage)
    for stage in watched.EVALUATED:
        runs[f"evaluated stage {stage}"] = partial(watched.evaluated, directory, ranks, stage)
    for stage in watched.SUSPECTS:
        runs[f"suspects stage {stage}"] = partial(watched.suspects, directory, ranks, stage)
    for stage in MIXED:
        config = tiny_config(str(directory), f"zero.stage={stage}", "model.min_frames=1")
        runs[f"mixed frames stage {stage}"] = partial(plain, ranks, config, mixed_batches())
    for stage, precision in STEERED:
        of_gan = "generator_loss"
        more = [f"{'gan' if key == of_gan else 'loss'}.{key}={value}".lower() for key, value in STEERING.items()]
        run = partial(zero_stage, directory, ranks, stage, 1, f"precision={precision}", *more)
        runs[f"steered stage {stage} {precision}"] = run
    for stage in DECAYED:
        config = tiny_config(str(directory), f"zero.stage={stage}", recipe=decaying_recipe())
        runs[f"decay stage {stage}"] = partial(plain, ranks, config)
    for stage, precision, what in exact_start.CASES:
        run = partial(exact_start.exported, directory, ranks, stage, precision, what)
        runs[f"exact start stage {stage} {precision} {what}"] = run
    runs["own settings"] = partial(own_settings, directory, ranks)
    runs["pictures"] = partial(pictures, directory, ranks)
    runs["dropout"] = partial(noisy.dropped, directory, ranks)
    runs["endless loss"] = partial(noisy.endless, directory, ranks)
    group = tiny_recipe()
    group.discriminator.norm = "group"
    runs["group norm"] = whole(recipe=group)
    runs["micro-batch 1"] = whole("micro_batch=1", recipe=tiny_recipe(local_weight=True))
    return runs


def main() -> None:
    directory, wanted = Path(sys.argv[1]), [word for word in sys.argv[2:] if word != "--quick"]
    left_out = SLOW if "--quick" in sys.argv else ()
    ranks = distributed.start(TIMEOUT_MINUTES)
    gc.collect()
    gc.freeze()  # DeepSpeed collects garbage for each ZeRO-3 engine, half a second over all that is imported
    results: dict[str, Any] = {
        name: run()
        for name, run in scenarios(directory, ranks).items()
        if not name.startswith(left_out) and (not wanted or name.startswith(tuple(wanted)))
    }
    results["timeouts"] = timeouts()  # those of DeepSpeed's groups, too, now that it has made them
    if ranks.is_main:
        torch.save(results, directory / "results.pt")
    distributed.stop()


if __name__ == "__main__":
    main()
