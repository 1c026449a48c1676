"""Combinations that cannot work are refused before anything starts, with the key and the remedy."""

from pathlib import Path

import pytest
import yaml

from data_pipeline.outside.documents import read_yaml_mapping
from tests.trainer.cases import tiny_config
from trainer.config.keys import config_keys
from trainer.config.loader import load_config
from trainer.config.train import TrainConfig

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.heads=5"], r"model\.heads=5 does not divide model\.width=32"),
        (["model.dynamics.downsamplings=4"], r"model\.dynamics\.downsamplings=4 halves the 4x4 patch grid past 1x1"),
        (["data.lanes=3"], r"data\.lanes=3 neither divides data\.global_batch=4"),
        (["data.image_size=64"], r"data\.image_size = 8 x 64 must be what the model is built for, .* 8 x 16"),
        (
            ["data.frame_counts=[2,8]", "model.min_frames=4"],
            r"data\.frame_counts=\[2, 8\] has clips of 2 frames, and the model takes 4 or more; .* model\.min_frames=2",
        ),
        (
            ["loss.perceptual=lpips"],
            r"loss\.perceptual=lpips needs the LPIPS-VGG weights: set loss\.lpips_weights=FILE",
        ),
        (["validation.perceptual=lpips"], r"validation\.perceptual=lpips needs .*: set loss\.lpips_weights=FILE"),
        (
            ["loss.perceptual=st_lpips", "loss.perceptual_frames=3", "data.frame_counts=[2,8]", "model.min_frames=2"],
            r"loss\.perceptual_frames=3 is more than the 2 frames of a clip",
        ),
        (["loss.perceptual_frames=-1"], r"loss\.perceptual_frames=-1 must not be negative; 0 means all"),
        (["loss.kl_warmup=-1"], r"loss\.kl_warmup=-1 must not be negative; set loss\.kl_warmup=0 for none"),
        (["max_hours=-1"], r"max_hours=-1\.0 must not be negative; set max_hours=0 for no limit"),
        (["loss.kl_weight=-1"], r"loss\.kl_weight=-1\.0 must not be negative"),
        (["gan.start=6"], r"gan\.start=6 is never reached in steps=6; set gan\.start lower, or gan\.weight=0"),
        (["optim.generator.warmup=6"], r"optim\.generator\.warmup=6 does not end in steps=6"),
        (["optim.clip=-1"], r"optim\.clip=-1\.0 must not be negative; set optim\.clip=0"),
        (["zero.stage=4"], r"zero\.stage=4 must be 0, 1, 2 or 3"),
        (["zero.discriminator_stage=2"], r"zero\.discriminator_stage=2 must be 0 or 1"),
        (
            ["zero.stage=3", "zero.overlap_comm=true"],
            r"zero\.overlap_comm=true needs zero\.stage=1 or 2, not 3",
        ),
        (
            ["zero.stage=0", "zero.offload_optimizer=true"],
            r"zero\.offload_optimizer=true needs ZeRO: set zero\.stage=1",
        ),
        (["zero.offload_parameters=true"], r"zero\.offload_parameters=true needs zero\.stage=3, not 1"),
        (
            ["zero.stage=3", "zero.offload_parameters=true"],
            r"zero\.offload_parameters=true needs zero\.offload_optimizer=true",
        ),
        (["collective_timeout=12"], r"watchdog\.start_budget=14 must lie below collective_timeout=12 .*by 5 s"),
        (
            ["collective_timeout=10", "watchdog.start_budget=10", "watchdog.pause_budget=10"],
            r"watchdog\.step_budget=10 must lie below .*or set watchdog\.step_budget=0",
        ),
        (["collective_timeout=14.05"], r"watchdog\.start_budget=14 must lie below collective_timeout=14\.05"),
        (["zero.bucket=0"], r"zero\.bucket=0 must be at least 1"),
        (["freeze=encoder"], r"freeze=encoder would keep random weights; set init_from=DIRECTORY"),
        (["ema.decay=1"], r"ema\.decay=1\.0 must lie in \[0, 1\)"),
        (["steps=0"], r"steps=0 must be at least 1"),
        (["precision=fp8"], r"precision"),
        (["optim.generator.lrr=1"], r"unknown key 'optim\.generator\.lrr'; did you mean 'optim\.generator\.lr'"),
        (["checkpoint.keep=0"], r"checkpoint\.keep=0 must be at least 1"),
        (["micro_batch=-1"], r"micro_batch and accumulation must not be negative"),
        (["accumulation=-1"], r"micro_batch and accumulation must not be negative"),
        *(
            ([f"preempted_status={status}"], rf"preempted_status={status} must be 0 or 3 \.\.\. 125 .*; set 0 or 75")
            for status in (-1, 1, 2, 126, 256)
        ),
        (["validation.ema=true"], r"validation\.ema=true needs a moving average; set ema\.decay"),
        (["validation.every=-1"], r"validation\.every=-1 must not be negative; set validation\.every=0"),
        (["validation.clips=0"], r"validation\.clips=0 must be at least 1"),
        (["checkpoint.best=val_psnr"], r"checkpoint\.best=val_psnr is measured by validation; set validation\.every"),
        (
            ["validation.every=3", "checkpoint.best=val_fvd"],
            r"checkpoint\.best=val_fvd is not measured; choose one of val_psnr, val_ssim$",
        ),
        (["validation.splits=[val,dev]"], r"validation\.splits: 'dev' is not a split; use some of train, val, test"),
        (["validation.splits=[val,val]"], r"validation\.splits=val,val names a split twice"),
        (["validation.splits=[]"], r"validation\.splits=\[\] names no split; set validation\.every=0"),
        (["collective_timeout=0"], r"collective_timeout=0\.0 must be positive \(minutes\)"),
        (["optim.max_skipped=0"], r"optim\.max_skipped=0 must be at least 1"),
        (["optim.generator.lr=0"], r"optim\.generator\.lr=0\.0 must be positive"),
        (["optim.discriminator.eps=0"], r"optim\.discriminator\.eps=0\.0 must be positive"),
        (["optim.discriminator.warmup=6"], r"optim\.discriminator\.warmup=6 does not end in steps=6"),
        (["activation_checkpointing.every=0"], r"activation_checkpointing\.every=0 must be at least 1"),
        (["telemetry.log_every=0"], r"telemetry\.log_every=0 must be at least 1"),
        (["telemetry.samples_every=-1"], r"telemetry\.samples_every must not be negative"),
        (["telemetry.sample_clips=0"], r"telemetry\.sample_clips at least 1"),
        (["gan.lecam_decay=1"], r"gan\.lecam_decay=1\.0 must lie in \[0, 1\)"),
        (["gan.lecam_decay=-0.1"], r"gan\.lecam_decay=-0\.1 must lie in \[0, 1\)"),
        (["checkpoint.resume=newest"], r"checkpoint\.resume=newest must be auto, never or the step of a checkpoint"),
        (["checkpoint.resume=-6"], r"checkpoint\.resume=-6 must be auto, never or the step"),
        (
            ["fork_from=s3://bucket/run@600"],
            r"fork_from=s3://bucket/run@600 must be a directory .* copy the checkpoint",
        ),
        (["checkpoint.every=0"], r"checkpoint\.every=0 must be at least 1"),
        (["checkpoint.keep_every=-1"], r"checkpoint\.keep_every=-1 must not be negative"),
        (["checkpoint.upload_wait=-1"], r"checkpoint\.upload_wait and .* must not be negative"),
        (["checkpoint.upload_wait_stopped=-1"], r"checkpoint\.upload_wait_stopped must not be negative"),
        (["rollback.window=3"], r"rollback\.window must be at least 4"),
        (["rollback.patience=0"], r"rollback\.patience and rollback\.limit at least 1"),
        (["rollback.limit=0"], r"rollback\.patience and rollback\.limit at least 1"),
        (["profile.at=-1"], r"profile\.at must not be negative"),
        (["profile.steps=0"], r"profile\.steps at least 1"),
        (["watchdog.step_budget=-1"], r"watchdog\.step_budget=-1\.0 must not be negative \(minutes\)"),
        (["watchdog.step_budget=0", "watchdog.pause_budget=-1"], r"watchdog\.pause_budget=-1\.0 must not be negative"),
        (["loss.perceptual_weight=0"], r"loss\.perceptual_weight=0\.0 must be more than 0; loss\.perceptual=none"),
        (["ema.decay=-0.5"], r"ema\.decay=-0\.5 must lie in \[0, 1\)"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_config("run", *words)


@pytest.mark.parametrize(
    "word",
    [
        *(f"preempted_status={status}" for status in (0, 3, 75, 125)),
        *("optim.max_skipped=1", "telemetry.samples_every=0", "gan.lecam_decay=0", "gan.start=5", "gan.lecam_weight=0"),
        *("rollback.window=4", "validation.clips=1", "steps=4", "optim.generator.warmup=5", "checkpoint.upload_wait=0"),
    ],
)
def test_the_last_value_before_a_limit_is_taken(word: str) -> None:
    words = ["gan.start=3"] if word == "steps=4" else []
    key, _, value = word.partition("=")
    found: object = tiny_config("run", *words, word)
    for name in key.split("."):
        found = getattr(found, name)
    assert found == float(value)


def test_without_a_discriminator_its_schedules_may_be_of_any_length() -> None:
    """Whoever trains for fewer steps than its warm-up takes, and does as the refusal says, has nothing to add."""
    config = tiny_config("run", "optim.discriminator.warmup=6", "gan.start=6", "gan.weight=0")
    assert (config.steps, config.gan.start, config.optim.discriminator.warmup) == (6, 6, 6)


def test_a_short_collective_timeout_goes_with_short_budgets_or_none() -> None:
    short = ("watchdog.step_budget=1", "watchdog.start_budget=1", "watchdog.pause_budget=1.9")
    assert tiny_config("o", "collective_timeout=2", *short).watchdog.pause_budget == 1.9
    assert tiny_config("o", "collective_timeout=2", "watchdog.step_budget=0").collective_timeout == 2


def test_fp16_is_refused_on_the_cpu_only() -> None:
    config = tiny_config("run", "precision=fp16")
    config.check_device("cuda")
    with pytest.raises(ValueError, match=r"precision=fp16 needs a GPU.*set precision=bf16 or fp32"):
        config.check_device("cpu")


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "accumulation", "expected"),
    [
        (1, 0, 0, (12, 1)),
        (2, 0, 0, (6, 1)),
        (2, 0, 3, (2, 3)),
        (2, 2, 0, (2, 3)),
        (3, 2, 2, (2, 2)),
        (12, 0, 0, (1, 1)),
    ],
)
def test_global_batch_is_ranks_x_accumulation_x_micro_batch(
    ranks: int, micro_batch: int, accumulation: int, expected: tuple[int, int]
) -> None:
    words = ["data.global_batch=12", f"micro_batch={micro_batch}", f"accumulation={accumulation}"]
    assert tiny_config("run", *words).split_batch(ranks) == expected


@pytest.mark.parametrize(
    ("ranks", "micro_batch", "accumulation", "message"),
    [
        (5, 0, 0, r"data\.global_batch=12 cannot be divided among 5 ranks; set data\.global_batch to a multiple of 5"),
        (2, 4, 0, r"12 on 2 ranks is 6 clips a rank, which is not .*micro_batch=4; set one of the two to 0"),
        (2, 0, 4, r"12 on 2 ranks is 6 clips a rank, which is not accumulation=4"),
        (2, 3, 1, r"which is not accumulation=1 x micro_batch=3; .* so that their product is 6"),
    ],
)
def test_global_batch_that_does_not_divide_is_refused(
    ranks: int, micro_batch: int, accumulation: int, message: str
) -> None:
    words = ["data.global_batch=12", f"micro_batch={micro_batch}", f"accumulation={accumulation}"]
    with pytest.raises(ValueError, match=message):
        tiny_config("run", *words).split_batch(ranks)


def test_every_key_is_explained() -> None:
    assert [key for key, _, _, meaning in config_keys(TrainConfig) if not meaning] == []


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "train").glob("*.yaml")))
def test_shipped_configurations_load(name: str) -> None:
    words = ["output=run", "data.shards=shards", "loss.lpips_weights=lpips.safetensors", "init_from=model"]
    config = load_config(TrainConfig, [CONFIGS / "train" / f"{name}.yaml"], words)
    assert config.split_batch(1)[0] >= 1


def test_an_output_on_a_store_is_refused_and_a_home_directory_is_found() -> None:
    with pytest.raises(ValueError, match=r"output=s3://bucket/run must be a directory .*checkpoint\.upload="):
        tiny_config("s3://bucket/run")
    config = tiny_config("~/run", "init_from=~/model", "loss.lpips_weights=~/lpips", "validation.fvd=~/i3d")
    places = (config.output, config.init_from, config.loss.lpips_weights, config.validation.fvd)
    assert places == tuple(str(Path.home() / name) for name in ("run", "model", "lpips", "i3d"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${HOME}/run", r"output=\$\{HOME\}/run holds \$\{\.\.\.\}, which nothing replaces here; write what it stands"),
        ("run\udcff", r"output='run\\udcff' is not UTF-8; rename what it names"),
    ],
)
def test_a_text_that_no_checkpoint_could_hold_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """A run would train, and neither go on from its checkpoints nor write its model."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"output": text}), errors="surrogatepass")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        read_yaml_mapping(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny_config(text)


def test_contents_are_compared_of_the_files_that_a_start_reads() -> None:
    """A run that goes on does not read `init_from` any more, so nodes may have lost it."""
    config = tiny_config("run", "init_from=/models/a", "loss.lpips_weights=/models/lpips")
    lpips = {"loss.lpips_weights": "/models/lpips"}
    assert config.files_of_nodes(fresh=True) == {"init_from": "/models/a"} | lpips
    assert config.files_of_nodes(fresh=False) == lpips
    assert tiny_config("run").files_of_nodes(fresh=True) == {}
    assert set(config.differ_by_node) >= config.files_of_nodes(fresh=True).keys()
