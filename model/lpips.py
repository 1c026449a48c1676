"""LPIPS on VGG-16 features, version 0.1 (Zhang et al. 2018, section 3): how different two images look.

The weights are other people's and no part of this project: VGG-16 as torchvision publishes it, five linear heads as the
LPIPS authors do. Shapes: N images, H W pixels.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.precision import at_least_fp32
from model.weights import check_keys, check_module_file, load_module, load_pickle, save_module, tensors_of

# Simonyan & Zisserman 2015, configuration D: channels of the 3x3 convolutions of each stage, a max-pool between stages.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# The input normalisation of LPIPS, ImageNet's mean and deviation moved to [-1, 1] images.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10


class LPIPS(nn.Module):
    """Distance of image pairs, summed over five depths of VGG-16. Frozen, always in evaluation mode, no dropout."""

    shift: Tensor
    scale: Tensor
    NAME = "LPIPS"
    SMALLEST = 16  # pixels of an image's side

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))
        self.features = nn.ModuleDict()  # keyed by the position in torchvision's `vgg16().features`
        self.stages: list[list[str]] = []  # those keys, stage by stage
        index, channels = 0, 3
        for stage in STAGES:
            self.stages.append([])
            for width in stage:
                self.features[str(index)] = nn.Conv2d(channels, width, 3, padding=1)
                self.stages[-1].append(str(index))
                index, channels = index + 2, width  # a ReLU follows each convolution
            index += 1  # the pool
        self.heads = nn.ModuleList(nn.Conv2d(stage[-1], 1, 1, bias=False) for stage in STAGES)
        self.requires_grad_(False)
        self.eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs.

        Args:
            a, b: [N, 3, H, W] in [-1, 1], H and W at least `SMALLEST`. Gradients flow into whichever needs them.
        Returns:
            [N, 1, 1, 1], 0 for equal images.
        Raises:
            ValueError: shapes that differ or are too small.
        """
        if a.shape != b.shape or a.dim() != 4 or a.shape[1] != 3 or min(a.shape[-2:]) < self.SMALLEST:
            raise ValueError(
                f"{self.NAME} needs two batches [N, 3, H, W] of equal shape, H and W at least {self.SMALLEST}; got "
                f"{list(a.shape)} and {list(b.shape)}"
            )
        distance = at_least_fp32(a.new_zeros(a.shape[0], 1))
        for head, x, y in zip(self.heads, self._taps(a), self._taps(b), strict=True):
            assert isinstance(head, nn.Conv2d)
            # The head is linear, so the mean over positions may come first.
            difference = (_unit(at_least_fp32(x)) - _unit(at_least_fp32(y))).square().mean(dim=(2, 3))
            distance = distance + F.linear(difference, head.weight.flatten(1))
        return distance[:, :, None, None]

    @property
    def dtype(self) -> torch.dtype:
        """The type that the convolutions work in."""
        return self._convolutions()[0].weight.dtype

    def work_in(self, dtype: torch.dtype) -> "LPIPS":
        """Let the convolutions work in `dtype`, and turn their weights into it once; the network itself.

        Their weights come to lie channels-last, as the pictures do. The distances of the features stay fp32 at least.
        """
        for conv in self._convolutions():
            for name in ("weight", "bias"):
                value = getattr(conv, name).detach()
                layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
                value = value.to(dtype, memory_format=layout)
                setattr(conv, name, nn.Parameter(value, requires_grad=False))
        return self

    def _convolutions(self) -> list[nn.Conv2d]:
        return [conv for conv in self.features.values() if isinstance(conv, nn.Conv2d)]

    def _taps(self, image: Tensor) -> list[Tensor]:
        """The last feature map of each stage."""
        x = ((image - self.shift) / self.scale).to(self.dtype, memory_format=torch.channels_last)
        taps: list[Tensor] = []
        for stage in self.stages:
            if taps:
                x = self._pool(x)
            for key in stage:
                x = F.relu(self.features[key](x))
            taps.append(x)
        return taps

    def _pool(self, x: Tensor) -> Tensor:
        """Half the height and width, between two stages."""
        return F.max_pool2d(x, 2)

    def train(self, mode: bool = True) -> "LPIPS":
        """A fixed measure: stays in evaluation mode whatever is asked."""
        return super().train(False)

    @classmethod
    def from_files(
        cls,
        path: str | Path | None = None,
        *,
        vgg: str | Path | None = None,
        heads: str | Path | None = None,
    ) -> "LPIPS":
        """Load the weights, either from one file or from the two their authors publish.

        Args:
            path: a .safetensors file that `save` or `launch/convert_official.py` wrote.
            vgg: torchvision's `vgg16` state dict (`features.N.weight`, `features.N.bias`; its classifier is not used).
            heads: the LPIPS v0.1 heads for VGG (`lin0.model.1.weight` ... `lin4.model.1.weight`).
        Raises:
            FileNotFoundError: a file is missing.
            ValueError: neither or both ways given, or a key missing, unknown or of the wrong shape.
        """
        if (path is None) == (vgg is None or heads is None):
            raise ValueError("give LPIPS.from_files either one .safetensors file, or both vgg=... and heads=...")
        model = cls()
        if path is not None:
            load_module(model, path)
            return model
        assert vgg is not None
        assert heads is not None
        backbone = tensors_of(load_pickle(vgg), str(vgg))
        weights = {name: value for name, value in backbone.items() if not name.startswith("classifier.")}
        check_keys(weights, model.features.state_dict(prefix="features."), str(vgg))
        linear = tensors_of(load_pickle(heads), str(heads))
        named = {f"lin{n}.model.1.weight": f"heads.{n}.weight" for n in range(len(STAGES))}
        check_keys(linear, {name: model.get_parameter(ours) for name, ours in named.items()}, str(heads))
        weights |= {ours: linear[name] for name, ours in named.items()}
        model.load_state_dict(weights | {"shift": model.shift, "scale": model.scale})
        return model

    @classmethod
    def check_file(cls, path: str | Path) -> None:
        """Refuse a file that `from_files(path)` would refuse, without reading its weights; raises as that does."""
        with torch.device("meta"):
            module = cls()
        check_module_file(module, path)

    def save(self, path: str | Path) -> None:
        """Write everything as one safetensors file for `from_files`."""
        save_module(self, path)


def _unit(features: Tensor) -> Tensor:
    """Scale each position's channel vector to length one. (`vector_norm` has gradient 0, not NaN, at a zero vector.)"""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)
