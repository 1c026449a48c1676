"""Trainings that are saved by some ranks at some ZeRO stage and gone on with by others.

    python -m tests.trainer.checkpoint.resharded DIRECTORY chain|matrix

Findings of the matrix go to DIRECTORY/results.pt; checkpoint/test_reshard.py judges them.
"""

import json
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.cases import global_batches, tiny_config, tiny_recipe
from tests.trainer.reference import Recipe
from tests.trainer.worlds import imports, in_world
from trainer.config.train import TrainConfig

RANKS, STAGES = (1, 2, 3), (0, 1, 2, 3)
GLOBAL_BATCH, HALF = 6, 3
CHAIN = {2: (2, 0), 4: (3, 3), 6: (2, 1), 8: (1, 2)}
"""Steps done at the end of a part of the run -> its ranks and ZeRO stage."""


def config_of(output: Path, stage: int, *settings: str, recipe: Recipe) -> TrainConfig:
    """persistence_threshold 300: at stage 3 about half of the weights stay whole on every rank."""
    zero = (f"zero.stage={stage}", f"zero.discriminator_stage={min(stage, 1)}", "zero.persistence_threshold=300")
    return tiny_config(
        str(output), *zero, f"data.global_batch={GLOBAL_BATCH}", "ema.decay=0.75", *settings, recipe=recipe
    )


# ---- one run in four parts, by the loop, on a dataset ---------------------------------------------------------------


def chain(directory: Path) -> None:
    """The run in parts in `run`, what each part exported in `model-STEPS`; and undisturbed on one rank in `whole`."""
    data = write_dataset(directory / "data", split_into_shards(make_clips(14, frames=(9, 12)), [5]))
    settings = [f"data.shards={data}", "data.workers=0", "micro_batch=1", "checkpoint.every=100", "checkpoint.keep=9"]
    settings += ["telemetry.log_every=1", "telemetry.samples_every=0"]
    recipe = tiny_recipe(local_weight=True, weight=0.1, start=1, warmup=1)  # each part must be a run of its own
    for steps, (ranks, stage) in CHAIN.items():
        config = config_of(directory / "run", stage, f"steps={steps}", *settings, recipe=recipe)
        in_world(ranks, partial(part, config))
        for folder in ("model", "model_ema"):
            shutil.copytree(directory / "run" / folder, directory / f"{folder}-{steps}")
    config = config_of(directory / "whole", 0, f"steps={max(CHAIN)}", *settings, recipe=recipe)
    in_world(1, partial(part, config))
    (directory / "edited.json").write_text(json.dumps(in_world(1, partial(edited, directory / "edited"))))


EDITED = {"weight_decay": 0.5, "betas": [0.25, 0.75], "eps": 0.125}
"""Settings of the generator's optimizer that a run was resumed with, and were others before."""


def edited(directory: Path) -> dict[str, list[Any]]:
    """What the optimizer of a resumed run works with, by stage and precision."""
    from tests.trainer.two_ranks import steps
    from trainer import distributed
    from trainer.autoencoder import Autoencoder

    ranks = distributed.start(2)
    settings = [f"optim.generator.{key}={value}".replace(" ", "") for key, value in EDITED.items()]
    settings.append("optim.generator.name=adam")
    results = {}
    for stage, precision in ((0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (0, "bf16"), (1, "bf16")):
        saved = directory / f"{stage}-{precision}"
        saved.mkdir(parents=True)
        method = Autoencoder(config_of(saved, stage, f"precision={precision}", recipe=tiny_recipe()), ranks)
        steps(method, ranks, global_batches(size=GLOBAL_BATCH)[:1])
        method.save(saved)
        other = Autoencoder(config_of(saved, stage, f"precision={precision}", *settings, recipe=tiny_recipe()), ranks)
        other.load(saved)
        keys = [*EDITED, "decoupled_weight_decay"]
        results[saved.name] = [{k: group[k] for k in keys} for group in other.generator.engine.optimizer.param_groups]
    distributed.stop()
    return results


def part(config: TrainConfig) -> None:
    """One rank of one part."""
    from trainer.autoencoder_builder import AutoencoderBuilder
    from trainer.loop import Stopped
    from trainer.run import run

    assert run(config, AutoencoderBuilder) is Stopped.FINISHED


# ---- every ranks and stage to every other ---------------------------------------------------------------------------


def matrix_recipe() -> Recipe:
    """No batch statistics, and the whole batch at once: an objective that does not depend on the number of ranks."""
    recipe = tiny_recipe()
    recipe.discriminator.norm = "group"
    return recipe


def kinds(directory: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Kinds of training: steps before it is saved, and settings. `early`: before the discriminator's first step."""
    return {
        "fp32": (HALF, ()),
        "bf16": (HALF, ("precision=bf16",)),
        "early": (1, ()),
        "frozen": (HALF, ("freeze=encoder", f"init_from={directory / 'init'}")),
    }


def matrix(directory: Path) -> dict[str, Any]:
    """Train the first steps at every sharding, and go on from each with every number of ranks at one of the stages.

    So every pair of numbers of ranks occurs at four pairs of stages, and every pair of stages with some ranks. The
    other kinds of training go from two ranks to every number of ranks.
    """
    in_world(1, partial(make_init, directory))
    results: dict[str, Any] = {}
    for ranks in RANKS:
        plan = [(stage, "fp32") for stage in STAGES]
        if ranks == 2:
            plan += [(stage, kind) for kind in ("bf16", "early", "frozen") for stage in STAGES]
        results |= in_world(ranks, partial(save_all, directory, plan))
    saved = [name for name in results if name.endswith("fp32")]
    for ranks in RANKS:
        plan = [(name, (int(name[0]) + int(name[2]) + ranks) % 4, "fp32") for name in saved]
        for stage in STAGES:
            other = (stage + ranks) % 4
            plan += [(f"2-{stage}-{kind}", other, kind) for kind in ("bf16", "early", "frozen")]
            plan += [(f"2-{stage}-fp32", other, "bf16"), (f"2-{stage}-bf16", other, "fp32")]
        results |= in_world(ranks, partial(resume_all, directory, plan))
    return results


def make_init(directory: Path) -> None:
    """A model directory to freeze the encoder of."""
    from trainer import distributed
    from trainer.autoencoder import Autoencoder

    Autoencoder(config_of(directory, 0, "seed=5", recipe=matrix_recipe()), distributed.start(2)).export(
        directory / "init"
    )


def save_all(directory: Path, plan: list[tuple[int, str]]) -> dict[str, Any]:
    """One rank: train the first steps at each stage, and save."""
    from tests.trainer.two_ranks import steps, weights
    from trainer import distributed
    from trainer.autoencoder import Autoencoder

    ranks = distributed.start(2)
    results = {}
    for stage, kind in plan:
        first, settings = kinds(directory)[kind]
        name = f"{ranks.world_size}-{stage}-{kind}"
        method = Autoencoder(config_of(directory, stage, *settings, recipe=matrix_recipe()), ranks)
        initial = weights(method)
        rows = steps(method, ranks, global_batches(size=GLOBAL_BATCH)[:first])
        if ranks.is_main:
            (directory / name).mkdir(parents=True)
        dist.barrier()
        method.save(directory / name)
        results[name] = {"initial": initial, "rows": rows, "state": everything(method)}
    distributed.stop()
    return results


def resume_all(directory: Path, plan: list[tuple[str, int, str]]) -> dict[str, Any]:
    """One rank: load saved trainings at a stage, look at them, train the other steps."""
    from tests.trainer.two_ranks import steps, weights
    from trainer import distributed
    from trainer.autoencoder import Autoencoder

    ranks = distributed.start(2)
    results = {}
    for name, stage, kind in plan:
        first, settings = kinds(directory)[kind]
        method = Autoencoder(config_of(directory, stage, *settings, recipe=matrix_recipe()), ranks)
        method.load(directory / name)
        state = everything(method)
        rows = steps(method, ranks, global_batches(size=GLOBAL_BATCH)[first:], first)
        results[f"{name} to {ranks.world_size}-{stage}-{kind}"] = {
            "state": state,
            "rows": rows,
            "final": weights(method),
        }
    distributed.stop()
    return results


def everything(method: Any) -> dict[str, Any]:
    """Masters, moving average and Adam's moments, whole, by name, as DeepSpeed gathers them; and working weights."""
    results: dict[str, Any] = {"master": method.generator.full_state() | method.discriminator.full_state()}
    with method.ema.applied():
        results["average"] = method.generator.full_state()
    with method.generator.whole() as module:
        results["working"] = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for kind in ("exp_avg", "exp_avg_sq"):
        results[kind] = _moment(method.generator, kind) | _moment(method.discriminator, kind)
    results["steps"] = [
        {float(state["step"]) for state in engine.engine.basic_optimizer.state.values() if state}
        for engine in (method.generator, method.discriminator)
    ]
    return results


def _moment(engine: Any, kind: str) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_optimizer_state

    optimizer = engine.engine.optimizer
    named = {name: weight for name, weight in engine.module.named_parameters() if weight.requires_grad}
    if not any(engine.engine.basic_optimizer.state.values()):
        return {}
    if engine.stage == 0:
        state, masters = engine.engine.basic_optimizer.state, {id(weight): weight for weight in named.values()}
        if not engine.plain:
            groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
            masters = {id(w): m for weights, group in groups for w, m in zip(weights, group, strict=True)}
        return {name: state[masters[id(weight)]][kind].clone() for name, weight in named.items()}
    if engine.stage < 3:
        # DeepSpeed 0.19.8 makes its views of the moments when only the first group has moments, and never again.
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    return {name: safe_get_full_optimizer_state(weight, kind).clone() for name, weight in named.items()}


def main() -> None:
    directory, what = Path(sys.argv[1]), sys.argv[2]
    imports()
    if what == "chain":
        chain(directory)
    else:
        torch.save(matrix(directory), directory / "results.pt")


if __name__ == "__main__":
    main()
