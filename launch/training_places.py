"""The places that a training reads and writes, looked at before anything is started or printed.

A store is asked only when the ranks have joined each other, because all of them must meet its answer together.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from launch.inputs import local_path
from launch.outputs import check_output_folder, lies_in
from model.config import WEIGHTS_FILE
from trainer.config.diffusion import DiffusionConfig
from trainer.config.objective import Perceptual
from trainer.config.run import RunConfig
from trainer.config.train import TrainConfig


def check_outputs(config: TrainConfig | DiffusionConfig) -> None:
    """Refuse to write over the data, over the model that the run starts from, or into a folder that is a model.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    output, inputs = Path(config.output), {"data.shards": config.data.shards, "init_from": config.init_from}
    if isinstance(config, DiffusionConfig):
        inputs["data.text"] = config.data.text
    if config.fork_from:
        inputs["fork_from"] = str(config.fork_place[0])
    for folder in (output, output / "model", output / "model_ema"):
        check_output_folder(folder, inputs, option="output=", empty=False)
    if (output / WEIGHTS_FILE).exists():
        raise ValueError(f"output={output} is a model directory; choose another, whose model/ will hold the result")
    upload = local_path(config.checkpoint.upload)
    if upload is not None:
        check_output_folder(upload, inputs, option="checkpoint.upload=", empty=False)
        for folder in (upload, upload.parent):  # another run's output, or its checkpoints
            if (folder / "lock").is_file() and (folder / "checkpoints").is_dir():
                raise ValueError(f"checkpoint.upload={upload} belongs to the run in {folder}; name a folder of its own")
    _check_outside(config.checkpoint.upload, "checkpoint.upload=", {"output": config.output} | inputs)
    _check_outside(config.output, "output=", inputs)


def _check_outside(place: str, option: str, others: dict[str, str]) -> None:
    """Refuse a folder, or the address of one on a store, that is one of the others or lies below it."""
    for key, other in others.items():
        if place and other and lies_in(place, other):
            raise ValueError(f"{option}{place} lies in {key}={other}; name a folder outside of it")


def check_inputs(config: TrainConfig) -> None:
    """Refuse shards, a model to start from, or weights of a perceptual network that this machine does not have.

    Raises:
        ValueError: naming the setting and the remedy.
        OSError: a disk fails.
    """
    if local_path(config.data.shards) is not None:
        from data_pipeline.dataset.description import DatasetFile
        from data_pipeline.store.open import open_store

        DatasetFile.load(open_store(config.data.shards))
    _check_perceptual(config)
    if config.validation.every and config.validation.fvd and not Path(config.validation.fvd).is_file():
        raise ValueError(f"validation.fvd={config.validation.fvd}: no such file; docs/evaluation.md says where it is")
    _check_run(config)
    if _begins_from_model(config):
        from trainer.engine.networks import check_initial_model

        check_initial_model(Path(config.init_from), config.model)


def check_latent_inputs(config: DiffusionConfig) -> None:
    """Refuse a dataset that is none of latents or of texts, or a DiT to start from that this machine does not have.

    Raises:
        ValueError: naming the setting and the remedy.
        OSError: a disk fails.
    """
    for named, place in {"data.shards=": config.data.shards, "data.text=": config.data.text}.items():
        if local_path(place) is not None:
            from data_pipeline.dataset.description import DatasetFile
            from data_pipeline.dataset.kind import LATENTS, TEXTS
            from data_pipeline.store.open import open_store

            DatasetFile.load(open_store(place), TEXTS if named == "data.text=" else LATENTS, named=named)
    _check_run(config)
    if _begins_from_model(config):
        from trainer.diffusion.initial import check_architecture

        check_architecture(Path(config.init_from), config.dit)


def _check_run(config: RunConfig) -> None:
    """Refuse loggers and a run to fork that this machine does not have."""
    _check_loggers(config)
    if config.fork_from and not _goes_on(config):
        from trainer.checkpoint.fork import parent_of

        parent_of(config)


def _goes_on(config: RunConfig) -> bool:
    """Whether the output may hold checkpoints, here or on the store that they are uploaded to."""
    return (Path(config.output) / "checkpoints").is_dir() or bool(config.checkpoint.upload)


def _begins_from_model(config: RunConfig) -> bool:
    """Whether the weights of `init_from` are read; a run that goes on does not look at them."""
    return bool(config.init_from) and not _goes_on(config) and not config.fork_from


def _check_perceptual(config: TrainConfig) -> None:
    wanted = {config.loss.perceptual} | ({config.validation.perceptual} if config.validation.every else set())
    weights = config.loss.lpips_weights
    measured = Perceptual.lpips in wanted or config.validation.every > 0
    if weights and measured and not Path(weights).is_file():
        raise ValueError(f"loss.lpips_weights={weights}: no such file; docs/training.md says how to make it")
    if weights and measured:
        from model.lpips import LPIPS

        try:
            LPIPS.check_file(weights)
        except ValueError as error:
            raise ValueError(f"loss.lpips_weights={weights}: {error}; docs/training.md says how to make it") from error
    if Perceptual.st_lpips in wanted:
        from model.st_lpips import package_file

        try:
            package_file()
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error


def _check_loggers(config: RunConfig) -> None:
    if config.telemetry.wandb and find_spec("wandb") is None:
        raise ValueError(
            f"telemetry.wandb={config.telemetry.wandb} needs its library: pip install -e '.[wandb]', or leave it empty"
        )
