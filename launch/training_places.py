"""The places that a training reads and writes, looked at before anything is started or printed.

A store is asked only when the ranks have joined each other, because all of them must meet its answer together.
"""

from __future__ import annotations

from pathlib import Path

from launch.outputs import check_output_folder, local_path
from model.config import WEIGHTS_FILE
from trainer.config.objective import Perceptual
from trainer.config.train import TrainConfig


def check_outputs(config: TrainConfig) -> None:
    """Refuse to write over the data, over the model that the run starts from, or into a folder that is a model.

    Raises:
        ValueError: naming the setting and the remedy.
    """
    output, inputs = Path(config.output), {"data.shards": config.data.shards, "init_from": config.init_from}
    for folder in (output, output / "model", output / "model_ema"):
        check_output_folder(folder, inputs, option="output=", empty=False)
    if (output / WEIGHTS_FILE).exists():
        raise ValueError(f"output={output} is a model directory; choose another, whose model/ will hold the result")
    upload = local_path(config.checkpoint.upload)
    if upload is not None:
        check_output_folder(upload, inputs, option="checkpoint.upload=", empty=False)
        _check_outside(upload, "checkpoint.upload=", {"output": config.output})
        _check_outside(upload, "checkpoint.upload=", inputs)
    _check_outside(output, "output=", inputs)
    for key, place in inputs.items():
        if config.checkpoint.upload and config.checkpoint.upload.rstrip("/") == place.rstrip("/"):
            raise ValueError(f"checkpoint.upload={config.checkpoint.upload} is {key}; upload to another place")


def _check_outside(folder: Path, option: str, others: dict[str, str]) -> None:
    """Refuse a folder that is one of the others or lies below it."""
    for key, place in others.items():
        other = local_path(place)
        if other is not None and folder.resolve().is_relative_to(other.resolve()):
            raise ValueError(f"{option}{folder} lies in {key}={place}; name a folder outside of it")


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
    goes_on = (Path(config.output) / "checkpoints").is_dir() or config.checkpoint.upload
    if config.init_from and not goes_on:  # a run that goes on does not look at it
        from trainer.engine.networks import check_initial_model

        check_initial_model(Path(config.init_from), config.model)


def _check_perceptual(config: TrainConfig) -> None:
    wanted = {config.loss.perceptual} | ({config.validation.perceptual} if config.validation.every else set())
    weights = config.loss.lpips_weights
    measured = Perceptual.lpips in wanted or config.validation.every > 0
    if weights and measured and not Path(weights).is_file():
        raise ValueError(f"loss.lpips_weights={weights}: no such file; docs/training.md says how to make it")
    if Perceptual.st_lpips in wanted:
        from model.st_lpips import package_file

        try:
            package_file()
        except FileNotFoundError as error:
            raise ValueError(str(error)) from error
