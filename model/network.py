"""The network of a VidTwin: what stands between a video, its two latents, and the video again.

Nothing here knows of a training or of files (`model/vidtwin.py` adds both), so that an exported model has this code
and no more. Shapes: B batch, T frames, H = W pixels, p patch side, g = H/p, S = g*g patches of a frame, C width.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.config import COLOURS, VidTwinConfig
from model.dynamics import DynamicsDecoder, DynamicsEncoder
from model.initial import normal_over_
from model.noise import Noise, draw_noise
from model.patches import patchify, unpatchify
from model.posterior import DiagonalGaussian
from model.structure import StructureDecoder, StructureEncoder
from model.transformer import SpaceTimeTransformer, modulated_norm


class Latents(NamedTuple):
    """structure [B, d_S, n_q, h_S, w_S], dynamics [B, d_D, f, w_D + h_D]; all that `VidTwinNetwork.decode` needs."""

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


class Posteriors(NamedTuple):
    """One diagonal Gaussian for each latent: [B, d_S, n_q, h_S, w_S], [B, d_D, f, w_D], [B, d_D, f, h_D]."""

    structure: DiagonalGaussian
    dynamics_w: DiagonalGaussian
    dynamics_h: DiagonalGaussian

    def kl(self) -> Tensor:
        """The three divergences added (nats a clip, scalar)."""
        return self.structure.kl() + self.dynamics_w.kl() + self.dynamics_h.kl()

    def drawn(self, noise: Noise | None) -> tuple[Tensor, Tensor, Tensor]:
        """One draw from each posterior, or its mean where there is no noise."""
        if noise is None:
            return self.structure.mode(), self.dynamics_w.mode(), self.dynamics_h.mode()
        structure, w, h = (part.sample(numbers) for part, numbers in zip(self, noise, strict=True))
        return structure, w, h

    def latents(self, noise: Noise | None) -> Latents:
        """What is drawn, as `VidTwinNetwork.decode` takes it."""
        structure, w, h = self.drawn(noise)
        return Latents(structure, torch.cat([w, h], dim=-1))


class PixelHead(nn.Module):
    """Modulated norm and the last linear layer: [B, T, S, C] -> [B, T, S, p*p*3], with the linear layer's input."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(2, width))
        normal_over_(self.modulation, width**0.5)
        self.linear = nn.Linear(width, patch * patch * COLOURS)

    def forward(self, x_BTSC: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.modulation.unbind(0)
        hidden = modulated_norm(x_BTSC, shift, scale)
        return self.linear(hidden), hidden


class VidTwinNetwork(nn.Module):
    """Encoder, latents and decoder.

    Videos are [B, 3, T, H, W] in [-1, 1], H = W = config.image_size, T = config.frames. With config.min_frames, T may
    also be smaller, down to that; then so is f of the dynamics latent.
    """

    def __init__(self, config: VidTwinConfig) -> None:
        super().__init__()
        self.config = config
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

    def posteriors(self, video: Tensor) -> Posteriors:
        """The posteriors of a video's latents.

        Args:
            video: [B, 3, T, H, W] floats in [-1, 1]; cast to the weights' dtype. The range is not checked here,
                because that would wait for the device; `encode` checks it.
        Raises:
            ValueError: wrong shape or dtype.
        """
        self._check_video(video)
        z = self.features(video)
        return Posteriors(self.structure_encoder(z), *self.dynamics_encoder(z))

    def encode(self, video: Tensor, sample: bool = False) -> Latents:
        """Latents of a video: posterior means, or draws with `sample=True`.

        Args:
            video: [B, 3, T, H, W] floats in [-1, 1].
        Raises:
            ValueError: wrong shape, dtype or value range.
        """
        posteriors = self.posteriors(video)
        check_range(video)
        noise = draw_noise(self.config, video.shape[0], video.shape[2], video.device) if sample else None
        return posteriors.latents(noise)

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
        return self.reconstruct(
            frames,
            latents.structure if structure else None,
            latents.dynamics_w if dynamics else None,
            latents.dynamics_h if dynamics else None,
        )[0]

    def features(self, video: Tensor) -> Tensor:
        """Encoder output z, [B, T, S, C]."""
        return self.encoder(self.patch_in(patchify(video.to(self.patch_in.weight.dtype), self.config.patch_size)))

    def reconstruct(
        self, frames: int, structure: Tensor | None, w: Tensor | None, h: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Video [B, 3, T, H, W] of drawn latents, and the last layer's input [B, T, S, C].

        Args:
            frames: T.
            structure, w, h: as in `Posteriors`. One latent may be left out; w and h are both there or both None.
        """
        dtype = self.pixels.linear.weight.dtype
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
        """The other numbers of frames that the model takes, for messages."""
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


def check_range(video: Tensor) -> None:
    """Refuse a video whose values lie outside of [-1, 1]; waits for the device.

    Raises:
        ValueError: with the range found and the remedy.
    """
    low, high = torch.aminmax(video.detach())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(
            f"video values lie in [{low.item():.4g}, {high.item():.4g}], but [-1, 1] is expected; "
            "for uint8 frames use video.float() / 127.5 - 1"
        )


def _comma(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
