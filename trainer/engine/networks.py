"""The modules that the two engines hold; reading them from a model directory, and writing them to one."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from data_pipeline.outside.naming import naming
from model.config import CONFIG_FILE, WEIGHTS_FILE, VidTwinConfig, read_config
from model.export.card import write_card
from model.export.formats import Format
from model.network import Posteriors
from model.noise import Noise
from model.official import DISCRIMINATOR_FILE, LOGVAR_FILE
from model.posterior import DiagonalGaussian
from model.precision import at_least_fp32
from model.provenance import Provenance, metadata_of
from model.resize import check_same_function, resize_weights
from model.vidtwin import VidTwin
from model.weights import check_keys, check_module_file, load_module, load_tensors, save_tensors


class Generator(nn.Module):
    """VidTwin and the scale of its error, learnt or fixed: what the generator's engine holds."""

    def __init__(self, vidtwin: VidTwin, logvar: float, learn_logvar: bool = True) -> None:
        super().__init__()
        self.vidtwin = vidtwin
        # Shape [1], because DeepSpeed 0.19 breaks on a 0-dim parameter.
        self.logvar = nn.Parameter(torch.full((1,), logvar), requires_grad=learn_logvar)

    def forward(self, video_BCTHW: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Posteriors]:
        """Returns recon [B, 3, T, H, W], hidden [B, N, width] without gradient, kl (scalar), logvar [1], posteriors.

        The posteriors come without gradient.
        """
        output = self.vidtwin(video_BCTHW, noise)
        posteriors = Posteriors(
            *(DiagonalGaussian(part.mean.detach(), part.logvar.detach()) for part in output.posteriors)
        )
        # ZeRO-3 takes the parameter itself away when forward ends, so a product with it is returned.
        return output.recon, output.hidden, output.kl, self.logvar * 1.0, posteriors


class DiscriminatorModule(nn.Module):
    """The discriminator with fp32 weights, its convolutions in `dtype`: what its engine holds."""

    def __init__(self, discriminator: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.dtype = dtype

    def judge(self, video_BCTHW: Tensor) -> Tensor:
        """Logits, fp32 at least, of clips [B, 3, T, H, W]."""
        # The autocast stands inside the module, because DeepSpeed switches an autocast around an engine off.
        with torch.autocast(video_BCTHW.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32):
            logits: Tensor = self.discriminator(video_BCTHW)
        return at_least_fp32(logits)


def check_initial_model(directory: Path, config: VidTwinConfig) -> None:
    """Refuse a directory of `init_from` that holds no model, or one that computes something else than `config`'s.

    The weights themselves are not read: the header of their file names them with their shapes.

    Raises:
        ValueError: naming the file or the key.
    """
    file = directory / WEIGHTS_FILE
    if not file.is_file():
        raise ValueError(f"init_from={directory}: {file} not found; name a directory that holds {WEIGHTS_FILE}")
    its_config = config
    if (directory / CONFIG_FILE).exists():
        with naming(f"init_from={directory}: "):
            its_config = read_config(directory / CONFIG_FILE)
        check_same_function(its_config, config, f"init_from={directory}")
    with torch.device("meta"):
        its_model = VidTwin(its_config)
    with naming(f"init_from={directory}: "):
        check_module_file(its_model, file)


def load_initial_weights(directory: Path, generator: Generator, discriminator: DiscriminatorModule | None) -> None:
    """Start from a model directory: VidTwin's weights, and the discriminator's and a learnt logvar where it has them.

    With config.yaml in it, the directory may be of another image size or number of frames (see model/resize.py).

    Raises:
        ValueError: weights that do not fit the configuration, naming the key.
    """
    model = generator.vidtwin
    check_initial_model(directory, model.config)
    file = directory / WEIGHTS_FILE
    weights = load_tensors(file)
    if (directory / CONFIG_FILE).is_file():
        weights = resize_weights(weights, model.state_dict())
    check_keys(weights, model.state_dict(), str(file))
    model.load_state_dict(weights)
    if discriminator is not None and (directory / DISCRIMINATOR_FILE).is_file():
        load_module(discriminator.discriminator, directory / DISCRIMINATOR_FILE)
    if generator.logvar.requires_grad and (directory / LOGVAR_FILE).is_file():
        found = load_tensors(directory / LOGVAR_FILE)
        check_keys(found, {"logvar": generator.logvar}, str(directory / LOGVAR_FILE))
        generator.logvar.data.copy_(found["logvar"])


def evaluation_copy(config: VidTwinConfig, generator: dict[str, Tensor]) -> VidTwin:
    """VidTwin with the weights of a full state dict of `Generator`, in evaluation mode, on the host.

    Its initial weights are drawn from random generators that are put back afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        vidtwin = VidTwin(config)
    vidtwin.load_state_dict(_under("vidtwin.", generator))
    return vidtwin.eval().requires_grad_(False)


def write_model(
    directory: Path,
    config: VidTwinConfig,
    generator: dict[str, Tensor],
    discriminator: dict[str, Tensor] | None,
    provenance: Provenance | None,
) -> None:
    """Write a `VidTwin.from_pretrained` directory with its card, and the two files that `load_initial_weights` reads.

    Args:
        directory: made if missing.
        config: the model's.
        generator, discriminator: full fp32 state dicts of `Generator` and `DiscriminatorModule`.
        provenance: what every file of weights carries in its metadata; None where no run made the weights.
    """
    vidtwin = VidTwin(config)
    vidtwin.load_state_dict(_under("vidtwin.", generator))
    vidtwin.provenance = provenance
    vidtwin.save_pretrained(directory)
    metadata = metadata_of(provenance)
    save_tensors({"logvar": generator["logvar"]}, directory / LOGVAR_FILE, metadata)
    if discriminator is not None:
        save_tensors(_under("discriminator.", discriminator), directory / DISCRIMINATOR_FILE, metadata)
    write_card(directory, Format.model, config, provenance)


def _under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict below `prefix`, its names without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
