"""The model that encodes: what identifies it, how a device opens it, and how it turns windows into posteriors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
from torch import Tensor

from data_pipeline.dataset.latent_tensors import LOGVARS, MEANS
from model.config import CONFIG_FILE, WEIGHTS_FILE, VidTwinConfig, read_config
from model.fetch import fetch
from model.vidtwin import VidTwin
from model.weights import load_tensors, weights_digest
from trainer.config.encoding import ComputeConfig, ModelRunConfig
from trainer.config.learning import Precision
from trainer.engine.device import finds_gpu
from trainer.engine.want_of_memory import batch_in_memory

_VERSION = "vidtwin-latents-1"
"""Increased when a change of this program changes the latents of an unchanged model."""
SMALLER_BATCH = "encode on a device with more memory, or begin another output with a smaller number"
"""What helps against want of memory. An output keeps its `encode.batch`, which may change the last bits of latents."""
_DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


def encoder_version() -> str:
    """What decides the bytes of latents besides settings, model and device: this program, torch and the decoder.

    The part of torch's version that names its build (`+cpu`, `+cu128`) is left out: that is the device's kind.
    """
    return f"{_VERSION} torch-{torch.__version__.partition('+')[0]} av-{av.__version__}"


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """What makes two model directories the same model."""

    config: VidTwinConfig
    weights: str  # SHA-256 over names, types, shapes and values of all weights

    def settings(self) -> dict[str, Any]:
        """Dotted key of the configuration -> value."""
        return _flat(asdict(self.config))

    def shapes(self, frames: int, logvar: bool) -> dict[str, tuple[int, ...]]:
        """Stored tensor -> its shape, of windows of that many frames.

        Args:
            logvar: whether the log-variances are stored.
        """
        channels, _, sides = self.config.dynamics_shape
        dynamics = (channels, frames, sides // 2)
        shapes = dict(zip(MEANS, (self.config.structure_shape, dynamics, dynamics), strict=True))
        if logvar:
            shapes |= dict(zip(LOGVARS, tuple(shapes.values()), strict=True))
        return shapes


@contextmanager
def model_directory(place: str) -> Iterator[Path]:
    """The model directory on this machine; that of a store is copied to a temporary folder for the block.

    Args:
        place: folder, or s3:// address.
    Raises:
        FileNotFoundError: there is none.
        OSError: the store fails.
    """
    if "://" not in place:
        path = Path(place)
        if not path.exists():
            raise FileNotFoundError(f"{path} not found; name a directory with {CONFIG_FILE} and {WEIGHTS_FILE}")
        folder = path if path.is_dir() else path.parent
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (folder / name).exists():
                raise FileNotFoundError(
                    f"{folder / name} not found; a model directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        yield folder
        return
    with TemporaryDirectory() as temporary:
        fetch(place, (CONFIG_FILE, WEIGHTS_FILE), Path(temporary))
        yield Path(temporary)


def identify(folder: Path) -> ModelIdentity:
    """The identity of the model in a directory.

    Raises:
        ValueError: a configuration or weights that cannot be read.
    """
    weights = weights_digest(load_tensors(folder / WEIGHTS_FILE))
    return ModelIdentity(config=read_config(folder / CONFIG_FILE), weights=weights)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def worker_device(config: ModelRunConfig) -> torch.device:
    """The device of a worker. Ray shows a worker only the GPU that it has set aside for it.

    Raises:
        ValueError: a GPU is asked for, and torch can use none here.
    """
    if not config.uses_gpu:
        return torch.device("cpu")
    asked = f"run.device={config.device.value} with run.unit_gpus={config.unit_gpus:g}"
    finds_gpu(asked, "set run.device=cpu to encode on the processor", needed=True)
    return torch.device("cuda", 0)


def device_name(device: torch.device) -> str:
    """The kind of a device. Two devices of one kind give the same latents to the last bit, others may differ."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return torch.cuda.get_device_name(device)


class WindowEncoder:
    """A model on a device that turns windows into the tensors of latents.

    Args:
        folder: model directory on this machine.
        device: where to compute.
        compute: threads and precision; the threads are set for the whole process.
        logvar: whether log-variances are wanted.
    """

    def __init__(self, folder: Path, device: torch.device, compute: ComputeConfig, *, logvar: bool) -> None:
        torch.set_num_threads(compute.threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        self.device, self._logvar, self._batch = device, logvar, compute.batch
        self._dtype = _DTYPES[compute.precision]
        self._model = VidTwin.from_pretrained(folder, device).to(self._dtype)

    @torch.inference_mode()
    def encode(self, video: Tensor) -> list[dict[str, Tensor]]:
        """The tensors of each window.

        Args:
            video: uint8 [b, 3, T, S, S], RGB, on the host.
        Returns:
            For each window, name -> float32 tensor on the host without a batch axis, as latent_tensors.py names them.
        Raises:
            ValueError: so many windows together need more memory than there is.
        """
        with batch_in_memory(f"encode.batch={self._batch}", SMALLER_BATCH):
            pixels = video.to(self.device).float() / 127.5 - 1
            posteriors = self._model.posteriors(pixels.to(self._dtype))
        named = {name: posterior.mean for name, posterior in zip(MEANS, posteriors, strict=True)}
        if self._logvar:
            named |= {name: posterior.logvar for name, posterior in zip(LOGVARS, posteriors, strict=True)}
        on_host = {name: tensor.float().cpu() for name, tensor in named.items()}
        return [{name: tensor[place] for name, tensor in on_host.items()} for place in range(len(video))]
