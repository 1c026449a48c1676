"""VidTwin: a video autoencoder whose latent is a structure and a dynamics (Wang et al., "VidTwin", CVPR 2025).

Shapes: B batch, T frames, H = W pixels, p patch side, g = H/p, S = g*g patches of a frame, C width.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from model.config import CONFIG_FILE, WEIGHTS_FILE, VidTwinConfig, read_config
from model.fetch import fetch
from model.network import Posteriors, VidTwinNetwork
from model.noise import Noise
from model.patches import patchify
from model.provenance import Provenance, metadata_of, read_provenance, write_provenance
from model.recompute import Mode, set_recomputation
from model.weights import check_module_file, load_module, save_module


class VidTwinOutput(NamedTuple):
    """What a training step needs. A tuple of tuples, so that ZeRO-3's hooks find every tensor.

    recon [B, 3, T, H, W]; hidden [B, T*S, C]: detached input of the last linear layer; posteriors; kl: scalar.
    """

    recon: Tensor
    hidden: Tensor
    posteriors: Posteriors
    kl: Tensor


class VidTwin(VidTwinNetwork):
    """The autoencoder, as it is trained and kept. Of `VidTwinNetwork` are what it takes and returns.

    Attributes:
        provenance: where the weights come from; None for random weights and for weights that no training wrote.
    """

    def __init__(self, config: VidTwinConfig) -> None:
        super().__init__(config)
        self.provenance: Provenance | None = None
        self.encoder_is_frozen = False

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(self, video_BCTHW: Tensor, noise: Noise | None = None) -> VidTwinOutput:
        """Reconstruct a batch.

        Args:
            video_BCTHW: as `posteriors` takes it.
            noise: draws the latents from the posteriors (`draw_noise`); None takes their means.
        Raises:
            ValueError: wrong shape or dtype.
        """
        posteriors = self.posteriors(video_BCTHW)
        recon, hidden = self.reconstruct(video_BCTHW.shape[2], *posteriors.drawn(noise))
        return VidTwinOutput(recon, hidden.detach().flatten(1, 2), posteriors, posteriors.kl())

    def patchify(self, video: Tensor) -> Tensor:
        """[B, 3, T, H, W] -> [B, T*S, p*p*3] in the order of the last linear layer's output.

        So the gradient of its weight is `patchify(d loss / d recon)^T hidden`, summed over batch and tokens.
        """
        return patchify(video, self.config.patch_size).flatten(1, 2)

    @property
    def last_layer(self) -> nn.Linear:
        """The decoder's final linear layer, the one the adaptive adversarial weight is measured at."""
        return self.pixels.linear

    def set_activation_checkpointing(self, mode: Mode, every: int = 1) -> None:
        """Trade time for memory in the blocks of both transformers; see `set_recomputation`."""
        set_recomputation((self.encoder.blocks, self.decoder.blocks), mode, every)

    def freeze_encoder(self) -> None:
        """Let only the decoder half learn: what makes the latents gets no gradient, and no dropout either."""
        self.encoder_is_frozen = True
        for part in self._encoding_parts():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "VidTwin":
        """Training mode or evaluation mode; a frozen encoder stays in the latter."""
        super().train(mode)
        if self.encoder_is_frozen:
            for part in self._encoding_parts():
                part.eval()
        return self

    def _encoding_parts(self) -> tuple[nn.Module, ...]:
        return self.patch_in, self.encoder, self.structure_encoder, self.dynamics_encoder

    def flops_per_clip(self) -> float:
        """Floating-point operations of one training step on one clip: 6 x block parameters x tokens of a clip.

        A token passes through the blocks of encoder and decoder once each; a frozen encoder only goes forward (2 in
        place of 6). Attention products, latent networks, losses and the discriminator are left out, so that MFU is not
        flattered by them.
        """
        tokens = self.config.frames * self.config.grid**2
        encoder, decoder = (_parameters(stack.blocks) for stack in (self.encoder, self.decoder))
        return ((2.0 if self.encoder_is_frozen else 6.0) * encoder + 6.0 * decoder) * tokens

    # ---- on disk --------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.yaml (under the key `model`), model.safetensors, and provenance.json where it is known."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_module(self, directory / WEIGHTS_FILE, metadata_of(self.provenance))
        if self.provenance is not None:
            write_provenance(directory, self.provenance)
        (directory / CONFIG_FILE).write_text(OmegaConf.to_yaml({"model": OmegaConf.structured(self.config)}))

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> "VidTwin":
        """Load what `save_pretrained` or `launch/convert_official.py` wrote, in evaluation mode.

        Args:
            path: the directory, or one of the two files in it; or the directory's address, such as s3://bucket/model.
            device: where the weights go.
        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a configuration or weights that do not fit, naming the key.
        """
        if "://" in str(path):
            with TemporaryDirectory() as folder:
                fetch(str(path), (CONFIG_FILE, WEIGHTS_FILE), Path(folder))
                return cls.from_pretrained(folder, device)
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path} not found; name a directory with {CONFIG_FILE} and {WEIGHTS_FILE}")
        directory = path if path.is_dir() else path.parent
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / name).exists():
                raise FileNotFoundError(
                    f"{directory / name} not found; a model directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        config = read_config(directory / CONFIG_FILE)
        check_size(config, directory / WEIGHTS_FILE)
        model = cls(config)
        load_module(model, directory / WEIGHTS_FILE)
        model.provenance = read_provenance(directory / WEIGHTS_FILE)
        return model.to(device).eval()


def check_size(config: VidTwinConfig, file: Path) -> None:
    """Refuse a configuration and a file of weights that do not fit, before memory is taken for either.

    Raises:
        ValueError: naming the weight.
    """
    with torch.device("meta"):
        empty = VidTwin(config)
    check_module_file(empty, file)


def _parameters(module: nn.Module) -> int:
    """Numbers in a module's parameters, also when ZeRO-3 holds them in shards (`ds_numel`)."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())
