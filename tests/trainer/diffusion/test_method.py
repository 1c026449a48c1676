"""A whole training of a DiT through the loop: it learns, goes on, is exported; what does not fit is refused."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.dit import DiT
from model.latent_statistics import ChannelStatistics
from model.provenance import Weights
from tests.trainer.diffusion.cases import SPACE, STATISTICS, Latent, TinyLatents, tiny_config
from tests.trainer.worlds import imports, in_world
from trainer.config.diffusion import DiffusionConfig
from trainer.diffusion.builder import DiffusionBuilder
from trainer.diffusion.method import LatentDiffusion
from trainer.distributed import Ranks
from trainer.loop import Stopped
from trainer.run import Refused, run
from trainer.telemetry.journal import read_rows

STEPS = 40
WORDS = (
    f"steps={STEPS}",
    "dit.condition=class",
    "optim.dit.warmup=1",
    "optim.dit.lr=1e-2",
    "ema.decay=0.9",
    "checkpoint.every=16",
    "telemetry.log_every=1",
    "telemetry.samples_every=10",
    "validation.every=20",
    "validation.ema=true",
    "checkpoint.best=val_loss",
)


class OtherLatents(TinyLatents):
    """The data with something changed."""

    def __init__(self, config: DiffusionConfig, ranks: Ranks, **changes: Any) -> None:
        super().__init__(config, ranks)
        vars(self).update(changes)


def configured(output: Path, *words: str) -> DiffusionConfig:
    return tiny_config(str(output), *WORDS, *words)


def train(config: DiffusionConfig, **changes: Any) -> Stopped:
    """Run in a process of its own, because DeepSpeed remembers the groups of the run before."""

    def work() -> tuple[str, str]:
        try:
            return "ended", run(config, partial(DiffusionBuilder, open_data=partial(OtherLatents, **changes))).value
        except Refused as error:
            return "refused", str(error)

    how, what = in_world(1, work)
    if how == "refused":
        raise Refused(what)
    return Stopped(what)


def rows(config: DiffusionConfig, event: str | None = None) -> list[dict[str, Any]]:
    return [row for row in read_rows(Path(config.output) / "metrics.jsonl") if row.get("event") == event]


@pytest.fixture(scope="module", autouse=True)
def imported() -> Iterator[None]:
    kept = dict(os.environ)
    imports()
    yield
    os.environ.clear()
    os.environ.update(kept)


@pytest.fixture(scope="module")
def whole(imported: None, tmp_path_factory: pytest.TempPathFactory) -> DiffusionConfig:
    """A run from its beginning to its end."""
    config = configured(tmp_path_factory.mktemp("whole") / "run")
    assert train(config) is Stopped.FINISHED
    return config


def test_it_learns_and_says_both_losses(whole: DiffusionConfig) -> None:
    found = rows(whole)
    for name in ("total_loss", "loss_structure", "loss_dynamics"):
        first, last = (sum(row[name] for row in some) for some in (found[:10], found[-10:]))
        assert last < 0.7 * first, name
    share = 3 * 16 / (3 * 16 + 2 * 16)  # of the numbers of both latents
    for row in found:
        whole_loss = share * row["loss_structure"] + (1 - share) * row["loss_dynamics"]
        assert row["total_loss"] == pytest.approx(whole_loss, rel=1e-5)
    assert "grad_norm_dit" in found[-1]
    assert [row["lr_dit"] for row in found] == [0.0] + [1e-2] * (STEPS - 1), "what each step learned at: warm-up is 1"
    kept = [min(0.9, (1 + step) / (10 + step)) for step in range(STEPS)]
    assert [row["ema_decay"] for row in found] == pytest.approx(kept, rel=1e-12)
    validated = rows(whole, "validation")
    assert [row["step"] for row in validated] == [20, 40]
    assert validated[1]["val_loss"] < validated[0]["val_loss"]


def test_stopped_and_started_again_it_has_the_same_numbers(
    whole: DiffusionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, usual = configured(tmp_path / "again"), LatentDiffusion.step

    def ending(method: LatentDiffusion, batch: Latent, step: int, observed: bool = False) -> dict[str, Tensor]:
        if step == 21:
            os.kill(os.getpid(), signal.SIGTERM)
        return usual(method, batch, step, observed)

    monkeypatch.setattr(LatentDiffusion, "step", ending)
    assert train(config) is Stopped.PREEMPTED
    monkeypatch.undo()
    assert train(config) is Stopped.FINISHED
    timeless = ("total_loss", "loss_structure", "loss_dynamics", "grad_norm_dit", "lr_dit", "ema_decay")
    assert [[row[name] for name in timeless] for row in rows(config)] == [
        [row[name] for name in timeless] for row in rows(whole)
    ]
    assert rows(config, "validation") == rows(whole, "validation")
    for name in ("model", "model_ema"):
        one, other = (DiT.from_pretrained(Path(some.output) / name).state_dict() for some in (config, whole))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_the_exported_models_are_the_weights_and_their_average(whole: DiffusionConfig) -> None:
    raw, average = (DiT.from_pretrained(Path(whole.output) / name) for name in ("model", "model_ema"))
    for model, weights in ((raw, Weights.raw), (average, Weights.ema)):
        assert model.provenance is not None
        assert (model.provenance.step, model.provenance.weights) == (STEPS, weights)
        assert (model.space, model.process, model.config) == (SPACE, whole.process, whole.dit)
        for kind, statistics in STATISTICS.items():
            assert torch.equal(model.normaliser.get_buffer(f"{kind}_mean"), torch.tensor(statistics.mean))
    assert not torch.equal(raw.structure_in.weight, average.structure_in.weight)


def test_it_begins_with_the_weights_of_a_model_and_the_statistics_of_its_data(
    whole: DiffusionConfig, tmp_path: Path
) -> None:
    model = Path(whole.output) / "model_ema"
    words = ("steps=2", "validation.every=0", "validation.ema=false", "checkpoint.best=", "optim.dit.lr=1e-9")
    other = STATISTICS | {"structure": ChannelStatistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
    train(configured(tmp_path / "tuned", f"init_from={model}", *words), statistics=other)
    tuned, before = DiT.from_pretrained(tmp_path / "tuned" / "model"), DiT.from_pretrained(model)
    torch.testing.assert_close(tuned.structure_in.weight, before.structure_in.weight, atol=1e-7, rtol=0)
    assert torch.equal(tuned.normaliser.get_buffer("structure_deviation"), torch.ones(3))
    assert torch.equal(tuned.normaliser.get_buffer("dynamics_w_mean"), torch.tensor(STATISTICS["dynamics_w"].mean))


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        (["dit.structure_patch=[3,1,1]"], {}, r"dit\.structure_patch=\[3, 1, 1\]: 3 does not divide"),
        ([], {"space": replace(SPACE, classes=())}, r"dit\.condition=class needs labels"),
        ([], {"statistics": {}}, "no statistics of 'structure'"),
        ([], {"held_out_clips": 0}, r"validation\.every=20 wants held-out clips, and there are none"),
        (["init_from=nowhere"], {}, r"init_from=nowhere: nowhere/config\.json not found"),
        (["init_from=MODEL", "dit.depth=3"], {}, r"has dit\.depth=2, and this run has 3; set dit\.depth=2, or name"),
        (["init_from=MODEL", "dit.condition=none"], {}, r"has dit\.condition=class, and this run has none; set"),
        (["init_from=MODEL"], {"space": replace(SPACE, classes=("a", "c", "b"))}, "knows the classes a, b, c, and"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step(
    whole: DiffusionConfig, tmp_path: Path, words: list[str], changes: Any, message: str
) -> None:
    words = [word.replace("MODEL", f"{whole.output}/model") for word in words]
    with pytest.raises(Refused, match=message):
        train(configured(tmp_path / "run", *words), **changes)
    assert not (tmp_path / "run" / "checkpoints").is_dir()


def test_the_network_and_what_it_predicts_may_not_change(whole: DiffusionConfig) -> None:
    longer = f"steps={STEPS + 1}"
    for word, message in (
        ("dit.qk_norm=true", r"\(dit\.qk_norm: False -> True\)"),
        ("process.schedule=cosine", r"\(process\.schedule: linear -> cosine\)"),
    ):
        with pytest.raises(Refused, match=message):
            train(configured(Path(whole.output), longer, word))
