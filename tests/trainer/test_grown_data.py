"""A run whose dataset grows between two of its starts; the method is a toy. What is read is test_growth.py's to say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from data_pipeline.read.loader import Batch
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.toy import Killed, Mishaps, Toy, ToyBuilder, checkpoints, losses, rows, toy
from trainer.config.running import RollbackConfig
from trainer.config.train import TrainConfig
from trainer.distributed import Ranks
from trainer.loop import Stopped
from trainer.run import run

SHARDS = split_into_shards(make_clips(35, frames=(9, 12)), [4])
BEFORE, AFTER = 6, 9  # shards: 24 and 35 clips, so 6 and 8 batches of 4 an epoch
STEPS = 20


@pytest.fixture
def grown(config: TrainConfig, tmp_path: Path) -> TrainConfig:
    """A run of 20 steps, before the dataset has grown."""
    write_dataset(tmp_path / "grown", SHARDS[:BEFORE])
    config.checkpoint = replace(config.checkpoint, every=6, keep=9)
    return replace(config, steps=STEPS, data=replace(config.data, shards=str(tmp_path / "grown")))


def grow(config: TrainConfig) -> None:
    write_dataset(Path(config.data.shards), SHARDS[:AFTER])


def test_new_samples_are_taken_up_from_the_next_epoch_on_and_it_is_said(
    grown: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after it has taken them up, and started again: the same numbers. Epoch 1 is steps 7 to 12."""
    as_it_was = replace(grown, output=f"{grown.output}-before")
    run(as_it_was, toy())
    for config in (grown, killed := replace(grown, output=f"{grown.output}-killed")):
        run(config, toy(stop_at=9))
    grow(grown)
    capsys.readouterr()
    assert run(grown, toy()) is Stopped.FINISHED
    said = f"{grown.data.shards} has grown since the checkpoint: split train has 35 samples now; the new ones are read"
    assert f"{said} from epoch 2 on\n" in capsys.readouterr().out
    assert f"{said} from epoch 2 on" in [row["text"] for row in rows(grown, "data") if row["step"] == 9]
    assert losses(grown)[:12] == losses(as_it_was)[:12]
    assert losses(grown)[12] != losses(as_it_was)[12]
    for call in (2, 5):
        with pytest.raises(Killed):
            run(killed, toy(dies_at_call=call))
    assert run(killed, toy()) is Stopped.FINISHED
    assert losses(killed) == losses(grown)


def test_a_fork_takes_them_up_as_well(grown: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    run(grown, toy(stop_at=9))
    grow(grown)
    fork = replace(grown, output=f"{grown.output}-fork", fork_from=grown.output)
    capsys.readouterr()
    assert run(fork, toy()) is Stopped.FINISHED
    assert "after 12 samples of epoch 1; " in capsys.readouterr().out
    run(grown, toy())
    assert losses(fork) == losses(grown)[9:]


class Spiking(Toy):
    """Its value blows up in its first three steps."""

    def step(self, batch: Batch, step: int, observed: bool = False) -> dict[str, Tensor]:
        if self.calls < 3:
            self.value = self.value + 1e5
        return super().step(batch, step, observed)


def spiking(dies_at_call: int | None = None) -> type[ToyBuilder]:
    class Builder(ToyBuilder):
        def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
            super().__init__(config, ranks, Mishaps(dies_at_call=dies_at_call))

        def build(self, fresh: bool) -> Toy:  # type: ignore[override]
            return Spiking(self.config, self.ranks, self.validation, self.mishaps)

    return Builder


def test_a_rollback_past_the_growth_goes_on_with_the_same_samples(grown: TrainConfig) -> None:
    """Epoch 2 is steps 13 to 18. The dataset grows after step 13; it spikes, and goes from step 16 back to 12.

    The data go on in epoch 2, which had begun without the new samples, while the checkpoint lies before its beginning.
    """
    config = replace(grown, steps=30, rollback=RollbackConfig(factor=10, window=4, patience=2))
    config.telemetry = replace(config.telemetry, log_every=2)
    killed = replace(config, output=f"{config.output}-killed")
    for one in (config, killed):
        run(one, toy(stop_at=13))
    grow(config)
    assert run(config, spiking()) is Stopped.FINISHED
    assert [row["step"] for row in rows(config, "rollback")] == [12]
    with pytest.raises(Killed):
        run(killed, spiking(dies_at_call=5))
    assert checkpoints(killed) == ["step-00000006", "step-00000012"]
    assert run(killed, toy()) is Stopped.FINISHED
    assert losses(killed) == losses(config)
