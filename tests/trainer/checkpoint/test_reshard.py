"""Other ranks, ZeRO stages and precisions: what is loaded is what was saved, and the run is the undisturbed one."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.tools.rounding import apart, assert_within
from tests.trainer.cases import global_batches, tiny_config
from tests.trainer.checkpoint.resharded import CHAIN, EDITED, GLOBAL_BATCH, RANKS, STAGES, matrix_recipe
from tests.trainer.reference import as_results, reference_of
from tests.trainer.test_two_ranks import ENCODING
from trainer.autoencoder_networks import micro_batch_dependent_settings
from trainer.checkpoint import reshard
from trainer.checkpoint.zero_files import Sharding, average_file
from trainer.engine.ema import Ema
from trainer.engine.engine import Engine
from trainer.engine.saved_files import load_saved
from trainer.randomness import rng_state, seed_everything

ROOT = Path(__file__).parents[3]
NEAR = 1e-3
"""Adam divides by the size of a gradient, so the rounding of one that is nearly zero moves its weight by up to a whole
step, and the losses by some 1e-4 in eight steps. A batch, a rank or a state that is wrong changes them by percents. The
discriminator's loss is what is left of logits of about 1 below 1, so its error is theirs."""
LOSSES = ("total_loss", "nll_loss", "kl_loss", "l1", "disc_loss", "lecam_loss", "adversarial_loss")


def rows(run: Path) -> list[dict[str, Any]]:
    written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in written if "event" not in row]


def test_ranks_and_stages_of_the_parts(chained: Path) -> None:
    saved = sorted((chained / "run" / "checkpoints").glob("step-*/state.json"))
    states = [json.loads(file.read_text()) for file in saved]
    assert {state["step"]: (state["ranks"], state["zero_stage"]) for state in states} == CHAIN
    said = (chained / "log").read_text()
    assert "the checkpoint of 2 ranks, ZeRO stage 0, fp32 goes on with 3 ranks, ZeRO stage 3, fp32" in said
    assert "the checkpoint of 2 ranks, ZeRO stage 1, fp32 goes on with 1 rank, ZeRO stage 2, fp32" in said
    assert "the losses follow" not in said


def test_a_checkpoint_holds_state_and_no_scripts(chained: Path) -> None:
    """At ZeRO 1 to 3 DeepSpeed copies programs into it, which work on its own runs only."""
    found = {file.suffix for file in (chained / "run" / "checkpoints").rglob("*") if file.is_file()}
    assert found == {"", ".json", ".pt", ".yaml"}
    for marker in (chained / "run" / "checkpoints").glob("step-*/COMPLETE"):
        here = {file.relative_to(marker.parent).as_posix() for file in marker.parent.rglob("*") if file.is_file()}
        assert set(json.loads(marker.read_text())["files"]) == here - {"COMPLETE"}


def test_a_run_in_parts_has_the_losses_of_the_undisturbed_one(chained: Path) -> None:
    rows_in_parts, expected = rows(chained / "run"), rows(chained / "whole")
    assert [row["step"] for row in rows_in_parts] == list(range(1, max(CHAIN) + 1))
    assert expected[-1]["adversarial_loss"] is not None
    for row, other in zip(rows_in_parts, expected, strict=True):
        for name in LOSSES:
            bound = NEAR * ("disc" in name)
            near = None if other.get(name) is None else pytest.approx(other[name], rel=NEAR, abs=bound)
            assert row.get(name) == near, name


def test_a_run_in_parts_ends_with_the_weights_of_the_undisturbed_one(chained: Path) -> None:
    """Weights move by up to 7e-3 in these steps; the two runs sum gradients in another order."""
    for file in ("model/model", "model/discriminator", "model/logvar", "model_ema/model"):
        weights, expected = (load_file(chained / run / f"{file}.safetensors") for run in ("run", "whole"))
        assert weights.keys() == expected.keys()
        for name, value in expected.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):  # each rank's own, unused
                part = "final discriminator." if "discriminator" in file else ""
                assert apart(f"{part}{name}", weights[name], value) <= 2e-5, f"{file}: {name}"


def test_an_optimizer_has_the_settings_it_was_resumed_with(chained: Path) -> None:
    """DeepSpeed, and torch, would go on with those of the checkpoint."""
    edited = json.loads((chained / "edited.json").read_text())
    assert len(edited) == 6
    for name, groups in edited.items():
        assert groups == [EDITED | {"decoupled_weight_decay": False}], name


# ---- everything to everything ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("matrix")
    command = [sys.executable, "-m", "tests.trainer.checkpoint.resharded", str(directory), "matrix"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2000)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return directory


@pytest.fixture(scope="module")
def results(saved: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(saved / "results.pt", weights_only=True)
    return loaded


def cases(results: dict[str, Any]) -> list[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    return [
        (name, results[name.split(" to ")[0]], name, resumed) for name, resumed in results.items() if " to " in name
    ]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_sharding_loads_every_other_bit_for_bit(results: dict[str, Any]) -> None:
    names = [name for _, _, name, _ in cases(results) if name.count("fp32") == 2]  # such as "2-0-fp32 to 3-1-fp32"
    assert len({(name[0], name[-8]) for name in names}) == len(RANKS) ** 2
    assert len({(name[2], name[-6]) for name in names}) == len(STAGES) ** 2
    for _, source, name, resumed in cases(results):
        state, expected = resumed["state"], source["state"]
        for kind in ("master", "average", "exp_avg", "exp_avg_sq"):
            assert state[kind].keys() == expected[kind].keys()
            assert all(torch.equal(state[kind][key], value) for key, value in expected[kind].items()), f"{name}: {kind}"
        assert state["steps"] == expected["steps"] == ([{1.0}, set()] if "early" in name else [{3.0}, {1.0}]), name
        dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
        for key, value in state["working"].items():
            assert torch.equal(value, expected["master"][key].to(dtype)), f"{name}: {key}"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_sharding_goes_on_from_every_other_like_plain_pytorch(results: dict[str, Any]) -> None:
    batches, recipe = global_batches(size=GLOBAL_BATCH), matrix_recipe()
    start, exported = (
        {part: _part(results[name]["initial"], part) for part in ("vidtwin", "discriminator")}
        for name in ("1-0-fp32", "2-0-frozen")  # with a frozen encoder, training begins with the weights of a model
    )
    frozen = reference_of(replace(recipe, frozen=ENCODING), exported, batches, 1, 1)
    whole = reference_of(recipe, start, batches, 1, 1)
    for _, _, name, found in cases(results):
        reference = frozen if "frozen" in name else whole
        first = len(reference.rows) - len(found["rows"])
        if "bf16" in name:
            for row, other in zip(found["rows"], reference.rows[first:], strict=True):
                for term in ("total_loss", "nll_loss", "l1"):
                    assert row[term] == pytest.approx(other[term], rel=0.04), f"{name}: {term}"
            continue
        ours = as_results([{}] * first + found["rows"], found["final"])
        wanted = {
            key: value
            for key, value in reference.results.items()
            if key.startswith("final") or int(key.split()[1]) >= first
        }
        print(name)
        assert_within({key: ours[key] for key in wanted}, wanted, reference.bounds)


def _part(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ["2-1-fp32", "3-2-fp32", "2-2-bf16", "3-3-fp32", "2-3-bf16"])
def test_deepspeeds_own_conversion_finds_the_same(
    saved: Path, results: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """ds_to_universal reads the same files; it cannot read stage 0."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(saved / name / "generator"), "--output_folder", str(tmp_path / "universal")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    state = results[name]["state"]
    for key, value in state["average"].items():  # the generator's names
        for kind, file in (("master", "fp32"), ("exp_avg", "exp_avg"), ("exp_avg_sq", "exp_avg_sq")):
            converted = torch.load(tmp_path / "universal" / "zero" / key / f"{file}.pt", weights_only=False)
            converted = (
                converted["param"] if isinstance(converted, dict) else converted
            )  # stage 3 writes the flat tensor alone
            assert torch.equal(converted.reshape(value.shape), state[kind][key]), f"{key}: {kind}"


# ---- the rest -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "before", "now", "reasons"),
    [
        ([], (2, 3), (1, 3), ["gan.local_weight=false"]),
        ([], (2, 3), (3, 2), ["discriminator.norm=batch"]),
        (["gan.local_weight=true"], (2, 1), (3, 1), []),
        (["gan.local_weight=true", "discriminator.norm=group"], (2, 3), (3, 2), ["gan.local_weight=true"]),
        (["discriminator.norm=group"], (2, 3), (1, 6), []),
        (["gan.adaptive=false", "discriminator.norm=none"], (2, 3), (1, 2), []),
        (["gan.weight=0", "model.structure.dropout=0.1"], (2, 3), (1, 6), ["model.structure.dropout=0.1"]),
    ],
)
def test_settings_that_depend_on_the_micro_batches(
    settings: list[str], before: tuple[int, int], now: tuple[int, int], reasons: list[str]
) -> None:
    """docs/training_scaling.md, "What depends on the micro-batch"."""
    assert (
        micro_batch_dependent_settings(tiny_config("unused", "data.global_batch=6", *settings), before, now) == reasons
    )


@pytest.mark.parametrize(
    ("ranks", "stage", "bits", "said"),
    [
        (2, 1, "float32", None),
        (3, 1, "float32", "2 ranks, ZeRO stage 1, fp32 goes on with 3 ranks, ZeRO stage 1, fp32"),
        (2, 2, "float32", "2 ranks, ZeRO stage 1, fp32 goes on with 2 ranks, ZeRO stage 2, fp32"),
        (2, 1, "bfloat16", "2 ranks, ZeRO stage 1, fp32 goes on with 2 ranks, ZeRO stage 1, bf16"),
        (2, 1, "float16", "2 ranks, ZeRO stage 1, fp32 goes on with 2 ranks, ZeRO stage 1, fp16"),
    ],
)
def test_the_console_hears_of_every_change_of_the_sharding(ranks: int, stage: int, bits: str, said: str | None) -> None:
    engine = SimpleNamespace(
        engine=SimpleNamespace(
            world_size=ranks,
            bfloat16_enabled=lambda: bits == "bfloat16",
            fp16_enabled=lambda: bits == "float16",
            train_micro_batch_size_per_gpu=lambda: 4,
        ),
        stage=stage,
        groups=1,
        masters=lambda: [torch.zeros(3)],
    )
    saved: Any = SimpleNamespace(sharding=Sharding(2, 1, "fp32"), micro_batch=4)
    lines = reshard.remarks(saved, cast(Engine, engine), lambda before, now: [])
    assert lines == ([] if said is None else [f"the checkpoint of {said}"])


def test_an_average_that_the_checkpoint_lacks_begins_with_the_loaded_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run kept none when it was saved, and goes on with one, on another number of ranks."""
    weight = torch.zeros(3)
    saved = SimpleNamespace(sharding=Sharding(2, 1, "fp32"), directory=tmp_path)
    monkeypatch.setattr(reshard, "SavedEngine", lambda *place, frozen: saved)
    monkeypatch.setattr(reshard, "restore", lambda engine, saved: weight.copy_(torch.tensor([7.0, 8.0, 9.0])))
    inner = SimpleNamespace(world_size=3, bfloat16_enabled=lambda: False, fp16_enabled=lambda: False, global_rank=0)
    engine = SimpleNamespace(name="dit", frozen={}, engine=inner, stage=1, masters=lambda: [weight])
    ema = Ema([weight])
    assert reshard.load([cast(Engine, engine)], ema, tmp_path) is saved
    assert ema.averages[0].tolist() == [7.0, 8.0, 9.0]


@pytest.mark.parametrize("stage", [0, 1, 3])
def test_every_rank_has_an_average_also_where_all_ranks_hold_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: int
) -> None:
    """This is rank 1. At ZeRO 0 only rank 0 writes one, which is whole; at other stages each rank has its shard's."""
    its, others = torch.tensor([1.0, 2.0]), torch.tensor([-3.0, -4.0])
    for rank, average in enumerate([its] if stage == 0 else [others, its]):
        torch.save([average], average_file(tmp_path, rank))
    sharding = Sharding(2, stage, "fp32")
    monkeypatch.setattr(
        reshard, "SavedEngine", lambda *place, frozen: SimpleNamespace(sharding=sharding, directory=tmp_path)
    )
    inner = SimpleNamespace(world_size=2, bfloat16_enabled=lambda: False, fp16_enabled=lambda: False, global_rank=1)
    loaded: list[Path] = []
    engine = SimpleNamespace(
        name="dit", frozen={}, engine=inner, stage=stage, groups=1, masters=lambda: [torch.zeros(2)], load=loaded.append
    )
    ema = Ema([torch.zeros(2)])
    reshard.load([cast(Engine, engine)], ema, tmp_path)
    assert loaded == [tmp_path], "DeepSpeed reads it"
    assert ema.averages[0].tolist() == its.tolist()


def test_a_new_rank_draws_its_own_numbers_and_the_same_ones_each_time() -> None:
    drawn = {}
    kept = rng_state()
    for key in ((1, 100), (2, 100), (2, 200)):
        seed_everything(7, *key)
        drawn[key] = torch.rand(3).tolist()
        seed_everything(7, *key)
        assert torch.rand(3).tolist() == drawn[key]
    assert len({str(values) for values in drawn.values()}) == 3
    torch.set_rng_state(kept["torch"])


class _Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('ran')",))


def test_no_code_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    torch.save({"module": {}, "optimizer": _Hostile()}, tmp_path / "mp_rank_00_model_states.pt")
    with pytest.raises(ValueError, match=r"mp_rank_00_model_states\.pt holds no state of an engine"):
        load_saved(tmp_path / "mp_rank_00_model_states.pt")
    (tmp_path / "cut.pt").write_bytes(pickle.dumps({})[:-1])
    with pytest.raises(ValueError, match=r"cut\.pt holds no state"):
        load_saved(tmp_path / "cut.pt")
