"""fork_from: the whole state goes along, the parent stays as it is, a killed fork is repeated. The method is a toy."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.checkpoint.test_history import changed, everything, history
from tests.trainer.numbers import flip_bit
from tests.trainer.toy import STEPS, Killed, checkpoints, losses, rows, toy
from trainer.checkpoint.files import flush_and_digest, marker_text, write_marker
from trainer.checkpoint.fork import read_parent
from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config, to_yaml
from trainer.config.train import TrainConfig
from trainer.loop import Stopped
from trainer.run import Refused, run


@pytest.fixture
def parent(config: TrainConfig) -> TrainConfig:
    """A run with checkpoints after steps 4, 8 and 9, the last."""
    assert run(config, toy()) is Stopped.FINISHED
    return config


def fork_of(parent: TrainConfig, step: int | None = 4, **settings: Any) -> TrainConfig:
    """A run in a folder of its own."""
    place = parent.output if step is None else f"{parent.output}@{step}"
    return replace(parent, fork_from=place, output=f"{parent.output}-fork", **settings)


def test_a_fork_goes_on_like_its_parent_which_stays_as_it_is(
    parent: TrainConfig, undisturbed: list[tuple[int, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(Path(parent.output))
    fork = fork_of(parent)
    capsys.readouterr()
    assert run(fork, toy()) is Stopped.FINISHED
    assert losses(fork) == undisturbed[4:]
    assert checkpoints(fork) == ["step-00000004", "step-00000008", "step-00000009"]
    assert everything(Path(parent.output)) == before
    said = "the fork goes on in the data where its parent was: after 0 samples of epoch 2"
    assert said in capsys.readouterr().out
    assert [row["text"] for row in rows(fork, "fork")] == [said]


def test_a_fork_and_its_model_say_where_they_come_from(parent: TrainConfig) -> None:
    fork = changed(fork_of(parent), lr=0.25)
    run(fork, toy())
    checkpoint = Path(parent.output) / "checkpoints" / "step-00000004"
    source = {
        "checkpoint": str(checkpoint),
        "step": 4,
        "sha256": hashlib.sha256((checkpoint / "COMPLETE").read_bytes()).hexdigest(),
        "changed": {
            "output": [parent.output, fork.output],
            "fork_from": ["", fork.fork_from],
            "optim.generator.lr": [parent.optim.generator.lr, 0.25],
        },
    }
    assert history(fork) == [{"step": 5, "forked_from": source, "changed": {}}]
    model = json.loads((Path(fork.output) / "model" / "provenance.json").read_text())
    assert (model["step"], model["forked_from"]) == (STEPS, source)
    assert json.loads((Path(parent.output) / "model" / "provenance.json").read_text())["forked_from"] is None
    again = replace(fork, fork_from=f"{fork.output}@8", output=f"{fork.output}-2")
    run(again, toy())
    model = json.loads((Path(again.output) / "model" / "provenance.json").read_text())
    assert (model["forked_from"]["step"], model["forked_from"]["forked_from"]) == (8, source)


@pytest.mark.parametrize("call", [1, 2])
def test_a_fork_that_was_killed_before_a_checkpoint_is_repeated_without_its_parent(
    parent: TrainConfig, undisturbed: list[tuple[int, float]], call: int
) -> None:
    """The parent has gone on, or is gone: the fork began at what was newest when it began."""
    fork = fork_of(parent, None, steps=STEPS + 5)
    with pytest.raises(Killed):
        run(fork, toy(dies_at_call=call))
    shutil.move(parent.output, f"{parent.output}-away")
    assert run(fork, toy(dies_at_call=99)) is Stopped.FINISHED
    longer = replace(parent, output=f"{parent.output}-longer", steps=STEPS + 5)
    run(longer, toy())
    assert losses(fork) == losses(longer)[STEPS:]
    assert [row["forked_from"]["step"] for row in history(fork)] == [STEPS]


def test_a_fork_that_was_killed_in_its_first_save_begins_again(
    parent: TrainConfig, undisturbed: list[tuple[int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainer.checkpoint import writer

    def dies(directory: Path, text: str) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(writer, "write_marker", dies)
        with pytest.raises(Killed):
            run(fork_of(parent), toy())
    assert run(fork_of(parent), toy()) is Stopped.FINISHED
    assert losses(fork_of(parent)) == undisturbed[4:]


@pytest.mark.parametrize("what", ["dataset", "seed of the data", "global batch"])
def test_other_data_are_read_from_their_beginning(
    parent: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    changes: dict[str, Any] = {"seed": 7} if what == "seed of the data" else {"global_batch": 2}
    if what == "dataset":
        other = write_dataset(tmp_path / "other", split_into_shards(make_clips(13, frames=(9,)), [5]))
        changes = {"shards": str(other)}
    fork = fork_of(parent, data=replace(parent.data, **changes))
    positions: list[tuple[int, int]] = []
    with pytest.raises(Killed):
        run(fork, toy(dies_at_call=3))
    state = json.loads((Path(fork.output) / "checkpoints" / "step-00000004" / "state.json").read_text())
    positions.append((state["epoch"], state["consumed"]))
    assert positions == [(0, 0)]
    assert "so it begins at epoch 0 of them" in capsys.readouterr().out
    first = losses(fork)
    assert run(fork, toy()) is Stopped.FINISHED
    assert losses(fork)[: len(first)] == first


def test_what_cannot_be_forked_is_refused_before_anything_is_written(parent: TrainConfig) -> None:
    cases: list[tuple[TrainConfig, str]] = [
        (fork_of(parent, 5), r"fork_from=.*run@5: .* holds no checkpoint of step 5; there are 4, 8, 9"),
        (fork_of(parent, 8, steps=8), r"steps=8 leaves a fork of .*step-00000008 nothing to do, .* set steps above 8"),
        (
            fork_of(parent, model=replace(parent.model, depth=3)),
            r"a fork has the networks of its parent \(model\.depth: 1 -> 3\); .* with init_from=DIRECTORY",
        ),
        (
            fork_of(parent, discriminator=replace(parent.discriminator, width=8)),
            r"the networks of its parent \(discriminator\.width: 16 -> 8\)",
        ),
        (
            fork_of(parent, loss=replace(parent.loss, learn_logvar=False)),
            r"the networks of its parent \(loss\.learn_logvar: True -> False\)",
        ),
        (replace(fork_of(parent), fork_from="nowhere"), r"fork_from=nowhere: nowhere holds no complete checkpoint"),
    ]
    for fork, message in cases:
        with pytest.raises(Refused, match=message):
            run(fork, toy())
        assert not (Path(fork.output) / "checkpoints").exists()
    flip_bit(Path(parent.output) / "checkpoints" / "step-00000004" / "toy.pt")
    with pytest.raises(Refused, match=r"toy\.pt has another content than was written .*; name another step"):
        run(fork_of(parent), toy())


def test_a_run_of_another_method_is_no_parent(tmp_path: Path) -> None:
    """Whatever its settings are, its networks are other ones, in files of other names."""
    words = ["data.shards=shards", "loss.perceptual=none", f"fork_from={tmp_path}"]
    autoencoder = load_config(TrainConfig, [], ["output=a", *words])
    dit = load_config(DiffusionConfig, [], ["output=b", words[0], words[2]])
    for parent, fork, message in (
        (dit, autoencoder, "settings of dit, process and none of discriminator, gan, model"),
        (autoencoder, dit, "settings of discriminator, gan, model and none of dit, process"),
    ):
        checkpoint = tmp_path / parent.output
        checkpoint.mkdir()
        (checkpoint / "config.yaml").write_text(to_yaml(parent))
        (checkpoint / "state.json").write_text('{"step": 1, "epoch": 0, "consumed": 8, "order": {}}')
        names = ("config.yaml", "state.json")
        write_marker(checkpoint, marker_text(1, {name: flush_and_digest(checkpoint / name) for name in names}))
        with pytest.raises(ValueError, match=f"fork_from=.* is of a training of something else, with {message}; name"):
            read_parent(checkpoint, fork, 0, 1)


def test_a_fork_with_weights_of_another_origin_is_refused_at_every_start(parent: TrainConfig) -> None:
    """A fork of a run that began from these weights may name them again, as its parent's configuration does."""
    two = r"fork_from=.*run@4 and init_from=/models/x are two origins: a fork has the weights of its parent; leave one"
    with pytest.raises(Refused, match=two):
        run(fork_of(parent, init_from="/models/x"), toy())
    assert not (Path(f"{parent.output}-fork") / "checkpoints").exists()
    run(fork_of(parent), toy(stop_at=6))
    before = everything(Path(f"{parent.output}-fork"))
    with pytest.raises(Refused, match=two):
        run(fork_of(parent, init_from="/models/x"), toy())
    assert everything(Path(f"{parent.output}-fork")) == before


def test_a_fork_may_repeat_the_initial_weights_of_its_parent(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    begun = replace(config, init_from=str(tmp_path / "x"))  # the toy takes no weights from it
    run(begun, toy())
    assert run(fork_of(begun), toy(stop_at=6)) is Stopped.PREEMPTED
    assert run(fork_of(begun), toy()) is Stopped.FINISHED
    assert "init_from" not in history(fork_of(begun))[0]["forked_from"]["changed"]


def test_a_new_discriminator_needs_its_warm_up_in_the_fork(parent: TrainConfig) -> None:
    without = replace(parent, output=f"{parent.output}-without", gan=replace(parent.gan, weight=0.0))
    run(without, toy())
    late = fork_of(without, gan=replace(parent.gan, weight=0.5, start=3), discriminator=parent.discriminator)
    with pytest.raises(Refused, match=r"gan\.start=3 lies before step 4, .* new discriminator.*gan\.start=4 or later"):
        run(late, toy())
    assert run(replace(late, gan=replace(late.gan, start=4)), toy()) is Stopped.FINISHED


def test_an_abandoned_checkpoint_can_be_forked_by_its_path(
    parent: TrainConfig, undisturbed: list[tuple[int, float]]
) -> None:
    folder = Path(parent.output) / "checkpoints"
    renamed = (folder / "step-00000008").rename(folder / "abandoned-step-00000008")
    fork = replace(fork_of(parent), fork_from=str(renamed))
    assert run(fork, toy()) is Stopped.FINISHED
    assert losses(fork) == undisturbed[8:]


def test_a_run_that_is_not_that_fork_refuses_it_and_stays_as_it_is(parent: TrainConfig) -> None:
    """Else the history would say that a run came from somewhere it did not."""
    other = replace(parent, output=f"{parent.output}-other")
    run(other, toy(stop_at=5))
    fork = fork_of(parent)
    run(fork, toy(stop_at=6))
    for config, holds in (
        (replace(other, fork_from=f"{parent.output}@4"), "is no fork"),
        (replace(fork, fork_from=f"{parent.output}@8"), f"comes from step 4 of {parent.output}/checkpoints"),
        (replace(fork, fork_from=other.output), f"comes from step 4 of {parent.output}/checkpoints"),
    ):
        before = everything(Path(config.output))
        with pytest.raises(Refused, match=f"fork_from=.* has no effect, because output=.* holds a run that {holds}"):
            run(config, toy())
        assert everything(Path(config.output)) == before
    assert run(replace(fork, fork_from=parent.output), toy()) is Stopped.FINISHED  # of whatever step
