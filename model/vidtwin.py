"""VidTwin: a video autoencoder whose latent is a structure and a dynamics (Wang et al., "VidTwin", CVPR 2025).

Shapes: B batch, T frames, H = W pixels, p patch side, g = H/p, S = g*g patches of a frame, C width.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from model.config import COLOURS, CONFIG_FILE, WEIGHTS_FILE, VidTwinConfig, read_config
from model.dynamics import DynamicsDecoder, DynamicsEncoder
from model.fetch import fetch
from model.noise import Noise, draw_noise
from model.patches import patchify, unpatchify
from model.posterior import DiagonalGaussian
from model.provenance import Provenance, metadata_of, read_provenance, write_provenance
from model.recompute import Mode, set_recomputation
from model.structure import StructureDecoder, StructureEncoder
from model.transformer import SpaceTimeTransformer, modulated_norm
from model.weights import load_module, save_module


class Posteriors(NamedTuple):
    """One diagonal Gaussian for each latent: [B, d_S, n_q, h_S, w_S], [B, d_D, f, w_D], [B, d_D, f, h_D]."""

    structure: DiagonalGaussian
    dynamics_w: DiagonalGaussian
    dynamics_h: DiagonalGaussian

    def kl(self) -> Tensor:
        """The three divergences added (nats a clip, scalar)."""
        return self.structure.kl() + self.dynamics_w.kl() + self.dynamics_h.kl()


class VidTwinOutput(NamedTuple):
    """What a training step needs. A tuple of tuples, so that ZeRO-3's hooks find every tensor.

    recon [B, 3, T, H, W]; hidden [B, T*S, C]: detached input of the last linear layer; posteriors; kl: scalar.
    """

    recon: Tensor
    hidden: Tensor
    posteriors: Posteriors
    kl: Tensor


class Latents(NamedTuple):
    """structure [B, d_S, n_q, h_S, w_S], dynamics [B, d_D, f, w_D + h_D]; all that `VidTwin.decode` needs."""

    structure: Tensor
    dynamics: Tensor

    @property
    def dynamics_w(self) -> Tensor:
        """[B, d_D, f, w_D]: varies along the width, height averaged away."""
        return self.dynamics[..., : self.dynamics.shape[-1] // 2]

    @property
    def dynamics_h(self) -> Tensor:
        """[B, d_D, f, h_D]: varies along the height, width averaged away."""
        return self.dynamics[..., self.dynamics.shape[-1] // 2 :]


class PixelHead(nn.Module):
    """Modulated norm and the last linear layer: [B, T, S, C] -> [B, T, S, p*p*3], with the linear layer's input."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.linear = nn.Linear(width, patch * patch * COLOURS)

    def forward(self, x_BTSC: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.modulation.unbind(0)
        hidden = modulated_norm(x_BTSC, shift, scale)
        return self.linear(hidden), hidden


class VidTwin(nn.Module):
    """The autoencoder. Videos are [B, 3, T, H, W] in [-1, 1], H = W = config.image_size, T = config.frames.

    With config.min_frames, T may also be smaller, down to that; then so is f of the dynamics latent.

    Attributes:
        provenance: where the weights come from; None for random weights and for weights that no training wrote.
    """

    def __init__(self, config: VidTwinConfig) -> None:
        super().__init__()
        self.config = config
        self.provenance: Provenance | None = None
        width, grid, frames = config.width, config.grid, config.frames

        def transformer() -> SpaceTimeTransformer:
            return SpaceTimeTransformer(
                width=width,
                heads=config.heads,
                depth=config.depth,
                frames=frames,
                grid=grid,
                position_grid=config.position_grid or grid,
                causal=config.causal,
            )

        self.patch_in = nn.Linear(config.patch_size**2 * COLOURS, width)
        nn.init.xavier_uniform_(self.patch_in.weight)
        self.encoder = transformer()
        self.structure_encoder = StructureEncoder(config.structure, width, grid)
        self.dynamics_encoder = DynamicsEncoder(config.dynamics, width, grid)
        self.structure_decoder = StructureDecoder(config.structure, width, grid, frames, config.shortest)
        self.dynamics_decoder = DynamicsDecoder(config.dynamics, width, grid)
        self.decoder = transformer()
        self.pixels = PixelHead(width, config.patch_size)
        self.encoder_is_frozen = False

    # ---- training -------------------------------------------------------------------------------------------------

    def forward(self, video_BCTHW: Tensor, noise: Noise | None = None) -> VidTwinOutput:
        """Reconstruct a batch.

        Args:
            video_BCTHW: [B, 3, T, H, W] floats in [-1, 1]; cast to the weights' dtype. The range is not checked here,
                because that would wait for the device in every step; `encode` checks it.
            noise: draws the latents from the posteriors (`draw_noise`); None takes their means.
        Raises:
            ValueError: wrong shape or dtype.
        """
        self._check_video(video_BCTHW)
        posteriors = self._posteriors(self._features(video_BCTHW))
        recon, hidden = self._reconstruct(video_BCTHW.shape[2], *_drawn(posteriors, noise))
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

    # ---- using the latents ----------------------------------------------------------------------------------------

    def encode(self, video: Tensor, sample: bool = False) -> Latents:
        """Latents of a video: posterior means, or draws with `sample=True`.

        Args:
            video: [B, 3, T, H, W] floats in [-1, 1].
        Raises:
            ValueError: wrong shape, dtype or value range.
        """
        self._check_video(video)
        low, high = torch.aminmax(video.detach())
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(
                f"video values lie in [{low.item():.4g}, {high.item():.4g}], but [-1, 1] is expected; "
                "for uint8 frames use video.float() / 127.5 - 1"
            )
        noise = draw_noise(self.config, video.shape[0], video.shape[2], video.device) if sample else None
        structure, w, h = _drawn(self._posteriors(self._features(video)), noise)
        return Latents(structure, torch.cat([w, h], dim=-1))

    def decode(self, latents: Latents, structure: bool = True, dynamics: bool = True) -> Tensor:
        """Video [B, 3, T, H, W] of latents; `structure=False` or `dynamics=False` leaves that half out.

        Raises:
            ValueError: latents of another shape than this model's, or both halves left out.
        """
        if not (structure or dynamics):
            raise ValueError("decode(structure=False, dynamics=False) leaves nothing to decode; keep one of them")
        channels, _, sides = self.config.dynamics_shape
        frames = latents.dynamics.shape[2] if latents.dynamics.dim() == 4 else 0
        expected = {"structure": self.config.structure_shape, "dynamics": (channels, self._fitting(frames), sides)}
        for name, shape in expected.items():
            actual = tuple(getattr(latents, name).shape)
            if actual[1:] != shape or len(actual) != len(shape) + 1:
                raise ValueError(
                    f"latents.{name} has shape {list(actual)}, but this model needs "
                    f"[B, {_comma(shape)}]{self._other_lengths()}"
                )
        return self._reconstruct(
            frames,
            latents.structure if structure else None,
            latents.dynamics_w if dynamics else None,
            latents.dynamics_h if dynamics else None,
        )[0]

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
            if not (directory / name).is_file():
                raise FileNotFoundError(
                    f"{directory / name} not found; a model directory holds {CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        model = cls(read_config(directory / CONFIG_FILE))
        load_module(model, directory / WEIGHTS_FILE)
        model.provenance = read_provenance(directory / WEIGHTS_FILE)
        return model.to(device).eval()

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _features(self, video: Tensor) -> Tensor:
        """Encoder output z, [B, T, S, C]."""
        return self.encoder(self.patch_in(patchify(video.to(self.patch_in.weight.dtype), self.config.patch_size)))

    def _posteriors(self, z_BTSC: Tensor) -> Posteriors:
        return Posteriors(self.structure_encoder(z_BTSC), *self.dynamics_encoder(z_BTSC))

    def _reconstruct(
        self, frames: int, structure: Tensor | None, w: Tensor | None, h: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Video and the last layer's input [B, T, S, C]."""
        dtype = self.patch_in.weight.dtype
        features: Tensor | None = None
        if structure is not None:
            features = self.structure_decoder(structure.to(dtype), frames)
        if w is not None and h is not None:
            moving = self.dynamics_decoder(w.to(dtype), h.to(dtype))
            features = moving if features is None else features + moving
        assert features is not None
        patches, hidden = self.pixels(self.decoder(features))
        return unpatchify(patches, self.config.patch_size), hidden

    def _fitting(self, frames: int) -> int:
        """The number of frames that this model takes in place of `frames`: the same, if it takes that."""
        return frames if self.config.shortest <= frames <= self.config.frames else self.config.frames

    def _other_lengths(self) -> str:
        """For messages: which other numbers of frames the model takes."""
        return f", or fewer frames, down to {self.config.shortest}" if self.config.min_frames else ""

    def _check_video(self, video: Tensor) -> None:
        frames = self._fitting(video.shape[2] if video.dim() == 5 else 0)
        expected = (COLOURS, frames, self.config.image_size, self.config.image_size)
        if video.dim() != 5 or tuple(video.shape[1:]) != expected:
            raise ValueError(
                f"video has shape {list(video.shape)}, but this model needs "
                f"[B, {_comma(expected)}]{self._other_lengths()}"
            )
        if not video.is_floating_point():
            raise ValueError(
                f"video has dtype {video.dtype}, but floats in [-1, 1] are needed: video.float() / 127.5 - 1"
            )


def _drawn(posteriors: Posteriors, noise: Noise | None) -> list[Tensor]:
    """One draw from each posterior, or its mean where there is no noise."""
    if noise is None:
        return [posterior.mode() for posterior in posteriors]
    return [posterior.sample(numbers) for posterior, numbers in zip(posteriors, noise, strict=True)]


def _parameters(module: nn.Module) -> int:
    """Numbers in a module's parameters, also when ZeRO-3 holds them in shards (`ds_numel`)."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())


def _comma(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
