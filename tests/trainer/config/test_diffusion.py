"""Settings of a training on latents that cannot work together."""

from __future__ import annotations

import pytest

from trainer.config.diffusion import DiffusionConfig
from trainer.config.loader import load_config, settings_of
from trainer.config.train import TrainConfig


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["steps=100"], r"optim\.dit\.warmup=10000 does not end in steps=100"),
        (["dit.heads=7"], r"dit\.heads=7 does not divide dit\.width=1152"),
        (["dit.structure_patch=[0,1,1]"], r"dit\.structure_patch=\[0, 1, 1\] must be 3 sizes of at least 1"),
        (["dit.structure_patch=[1,1]"], r"dit\.structure_patch=\[1,1\] must be a list of 3 values"),
        (["process.objective=flow", "loss.min_snr_gamma=5"], r"loss\.min_snr_gamma=5\.0 is for process\.objective=x0"),
        (["process.objective=flow", "process.zero_terminal_snr=true"], r"process\.zero_terminal_snr=true is for"),
        (
            ["process.objective=flow", "process.schedule=cosine"],
            r"process\.schedule=cosine is for process\.objective=x0",
        ),
        (["process.objective=flow", "process.steps=500"], r"process\.steps=500 .* set process\.steps=1000"),
        (["process.shift=2"], r"process\.shift=2\.0 is for process\.objective=flow; set process\.shift=0\.0"),
        (["loss.logit_mean=1"], r"loss\.logit_mean=1\.0 is for process\.objective=flow"),
        (["loss.logit_deviation=2"], r"loss\.logit_deviation=2\.0 is for process\.objective=flow"),
        (["ema.decay=0", "validation.ema=true"], r"validation\.ema=true needs a moving average"),
        (["checkpoint.best=val_loss"], r"checkpoint\.best=val_loss is measured by validation"),
        (["checkpoint.best=val_psnr", "validation.every=5"], "choose one of val_loss, val_loss_structure"),
        (["data.normalize=true"], r"data\.normalize=true would normalise the latents twice"),
        (["data.split=val", "validation.every=5"], r"data\.split=val is the split that validation\.every=5 measures"),
        (["gan.weight=0"], r"unknown key 'gan\.weight'"),
    ],
)
def test_refused_with_the_key(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(DiffusionConfig, [], ["output=run", "data.shards=x", *words])


def test_the_defaults_are_the_papers() -> None:
    config = load_config(DiffusionConfig, [], ["output=run", "data.shards=x"])
    assert (config.dit.depth, config.dit.width, config.dit.class_width) == (18, 1152, 256)
    assert (config.process.steps, config.process.objective.value, config.loss.condition_drop) == (1000, "x0", 0.2)
    assert (config.optim.dit.name.value, config.optim.dit.betas, config.optim.dit.warmup) == (
        "adam",
        (0.9, 0.999),
        10_000,
    )


def test_a_fork_may_have_another_loss_and_not_another_network() -> None:
    parent = settings_of(load_config(DiffusionConfig, [], ["output=run", "data.shards=x"]))
    DiffusionConfig.check_fork(parent, parent | {"loss.min_snr_gamma": 5.0, "data.global_batch": 8}, 100)
    for key, value in (("dit.depth", 2), ("process.objective", "flow")):
        with pytest.raises(ValueError, match=f"the network of its parent \\({key}: "):
            DiffusionConfig.check_fork(parent, parent | {key: value}, 100)


def test_a_batch_is_divided_as_the_autoencoders_is() -> None:
    for cls, words in ((DiffusionConfig, []), (TrainConfig, ["loss.perceptual=none"])):
        config = load_config(cls, [], ["output=run", "data.shards=x", "data.global_batch=24", "accumulation=3", *words])
        assert config.split_batch(2) == (4, 3)
        with pytest.raises(ValueError, match=r"data\.global_batch=24 cannot be divided among 5 ranks"):
            config.split_batch(5)
