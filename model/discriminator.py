"""PatchGAN discriminators over frames (2-D) or over the clip (3-D).

Isola et al. 2017, section 3.2.2, with the layer sizes of the released VidTwin and VidTok code. Input [B, 3, T, H, W].
"""

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import COLOURS, GROUPS, DiscriminatorConfig
from model.initial import normal_

SLOPE = 0.2
INIT_STD = 0.02
MAX_GROWTH = 8  # channels grow to at most this many times the first layer's


class _Hidden(nn.Module):
    """Convolution, norm, leaky ReLU. The convolution has a bias only where no norm follows."""

    def __init__(self, conv: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return F.leaky_relu_(x, SLOPE)  # neither the convolution nor the norm needs its output for its gradient


class PatchDiscriminator(nn.Module):
    """Logits of overlapping patches: one value for each, high where it looks real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        clip = config.kind == "3d"
        conv = nn.Conv3d if clip else nn.Conv2d
        kernel = 3 if clip else 4
        # (time, height, width); the clip's time axis is halved by the first two layers only
        strides = [(2, 2, 2), (2, 2, 2)] + [(1, 2, 2)] * config.layers
        widths = [config.width * min(2**n, MAX_GROWTH) for n in range(config.layers + 1)]

        self.first = conv(COLOURS, widths[0], kernel, stride=2, padding=1)
        self.hidden = nn.ModuleList()
        for index in range(1, config.layers + 1):
            stride = strides[index] if index < config.layers else (1, 1, 1)
            self.hidden.append(
                _Hidden(
                    conv(
                        widths[index - 1],
                        widths[index],
                        kernel,
                        stride=stride if clip else stride[1:],  # type: ignore[arg-type]
                        padding=1,
                        bias=config.norm == "none",
                    ),
                    _norm(config, widths[index]),
                )
            )
        self.last = conv(widths[-1], 1, kernel, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolution weights N(0, 0.02), norm weights N(1, 0.02), as in pix2pix and the released code."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                normal_(module.weight, 0.0, INIT_STD)
            elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm):
                normal_(module.weight, 1.0, INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Judge a batch.

        Args:
            video_BCTHW: [B, 3, T, H, W] in [-1, 1]; cast to the weights' dtype.
        Returns:
            Logits [B*T, 1, h', w'] (2-D) or [B, 1, t', h', w'] (3-D).
        Raises:
            ValueError: wrong shape, or a video too small to leave a patch.
        """
        if video_BCTHW.dim() != 5 or video_BCTHW.shape[1] != COLOURS:
            raise ValueError(f"discriminator input has shape {list(video_BCTHW.shape)}, but [B, 3, T, H, W] is needed")
        smallest = 2 ** (self.config.layers + 2)
        if min(video_BCTHW.shape[-2:]) < smallest:
            raise ValueError(
                f"discriminator.layers={self.config.layers} needs frames of at least {smallest} pixels, got "
                f"{list(video_BCTHW.shape[-2:])}; lower discriminator.layers"
            )
        x = (
            video_BCTHW.to(self.first.weight.dtype).permute(0, 2, 3, 4, 1).contiguous()
        )  # colours last: the faster layout
        x = x.permute(0, 4, 1, 2, 3) if self.config.kind == "3d" else x.flatten(0, 1).permute(0, 3, 1, 2)
        x = F.leaky_relu_(self.first(x), SLOPE)
        for layer in self.hidden:
            x = layer(x)
        return self.last(x)


def _norm(config: DiscriminatorConfig, channels: int) -> nn.Module | None:
    if config.norm == "none":
        return None
    if config.norm == "group":
        return nn.GroupNorm(GROUPS, channels)
    return nn.BatchNorm3d(channels) if config.kind == "3d" else nn.BatchNorm2d(channels)


def build_discriminator(config: DiscriminatorConfig) -> PatchDiscriminator:
    """The discriminator a configuration describes, freshly initialised."""
    return PatchDiscriminator(config)
