"""ST-LPIPS on VGG-16 features (Ghildyal & Liu, ECCV 2022): a perceptual distance that small shifts hardly change.

It is the network of LPIPS with another way from stage to stage, trained anew. Its weights lie in the Python package
`stlpips-pytorch`, so they need no download of their own; nothing of that package is imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from model.lpips import LPIPS, STAGES
from model.weights import check_keys, load_pickle, tensors_of

PACKAGE = "stlpips_pytorch"
FILE = "weights/vST0.0/vgg_shift_tolerant.pth"
# Section 3.3 of the paper: a blur before each subsampling (Zhang 2019, "Making convolutional networks shift-invariant
# again"), here the binomial filter of three taps, with reflected borders twice as wide as the filter would need.
TAPS = (0.25, 0.5, 0.25)
BORDER = 2


class STLPIPS(LPIPS):
    """Distance of image pairs, summed over five depths of a VGG-16 whose pooling is anti-aliased.

    Called as `LPIPS` is, with images [N, 3, H, W] in [-1, 1] of at least 18 pixels. Its numbers are not LPIPS's.
    """

    blur: Tensor
    NAME = "ST-LPIPS"
    SMALLEST = 18  # the border of the last pooling reflects two pixels

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor(TAPS)
        self.register_buffer("blur", torch.outer(taps, taps).view(1, 1, 3, 3), persistent=False)

    def _pool(self, x: Tensor) -> Tensor:
        """The largest of each 2 x 2 positions, all of them, then blurred and subsampled."""
        dense = F.pad(F.max_pool2d(x, 2, stride=1), (BORDER,) * 4, mode="reflect")
        channels = x.shape[1]
        return F.conv2d(dense, self.blur.expand(channels, 1, 3, 3), stride=2, groups=channels)

    def work_in(self, dtype: torch.dtype) -> STLPIPS:
        """Work in a type, as LPIPS does. The blur's numbers are powers of two, so no type rounds them."""
        super().work_in(dtype)
        self.blur = self.blur.to(dtype)
        return self

    @classmethod
    def from_package(cls, file: str | Path | None = None) -> STLPIPS:
        """Load the published weights.

        Args:
            file: `vgg_shift_tolerant.pth` of the package; None = that of the installed package.
        Raises:
            FileNotFoundError: the package, or the file, is not there.
            ValueError: the file holds something else.
        """
        path = package_file() if file is None else Path(file)
        weights = tensors_of(load_pickle(path), str(path))
        model = cls()
        names = {_published(ours): ours for ours in model.state_dict()}
        found = {name: value for name, value in weights.items() if not name.endswith(".filt")}  # the blur's taps
        check_keys(found, {name: model.state_dict()[ours] for name, ours in names.items()}, str(path))
        model.load_state_dict({names[name]: value for name, value in found.items()})
        return model


def package_file() -> Path:
    """The weights in the installed package; raises FileNotFoundError where it is not installed."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the weights of ST-LPIPS are not installed; run `pip install stlpips-pytorch==0.0.2` (64 MB), or install "
            "this project with its extra: pip install -e '.[perceptual]'"
        )
    return Path(spec.submodule_search_locations[0]) / FILE


def _published(ours: str) -> str:
    """The name that the published file has for one of our weights."""
    kind, _, rest = ours.partition(".")
    if kind == "heads":
        index, _, name = rest.partition(".")
        return f"lin{index}.model.1.{name}"
    if kind != "features":
        return f"scaling_layer.{ours}"
    index, _, name = rest.partition(".")
    # A pooling takes two places in the published order and one in ours, and each opens the slice of the next stage.
    stage = sum(int(index) >= first for first in _FIRST)
    return f"net.slice{stage + 1}.{int(index) + stage}.{name}"


# the places, in `LPIPS.features`, of the first convolution of the second stage and of those after it
_FIRST = tuple(sum(2 * len(stage) + 1 for stage in STAGES[: n + 1]) for n in range(len(STAGES) - 1))
