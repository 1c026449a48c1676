"""The paper's Figure 5: what a plain transformer costs on VidTwin's latents, and on the latents of other models.

The transformer is the paper's pseudo-DiT (model/pseudo_dit.py). A cost is that of a training step, forward and
backward, for one clip of 16 x 224 x 224: floating-point operations of the matrix products, and bytes of activations at
the step's peak in fp32. Both are computed for every latent. For VidTwin's own they are also measured, with a real step
on the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.store.counted import counted
from model.config import VidTwinConfig
from model.dit_config import PAPER, DiTConfig, LatentSpace, PatchGrid
from model.pseudo_dit import HIDDEN, LAYERS, PATCH, WIDTH, PseudoDiT
from trainer.engine.torch_private import FakeTensorMode
from trainer.estimate.trace import Meter

FRAMES, SIDE = 16, 224
_COLOURS = 3


@dataclass(frozen=True, kw_only=True)
class Latent:
    """The latent of a clip as its model makes it.

    Attributes:
        name: of the model.
        grids: the parts of the latent in patches.
        source: where the shape is stated, and what was assumed.
        side: of the clip in pixels.
    """

    name: str
    grids: Sequence[PatchGrid]
    source: str
    side: int = SIDE

    @property
    def tokens(self) -> int:
        """Patches of all parts."""
        return sum(grid.tokens for grid in self.grids)

    @property
    def numbers(self) -> int:
        """Numbers in all parts."""
        return sum(grid.tokens * grid.values for grid in self.grids)

    @property
    def rate(self) -> float:
        """The paper's compression rate in percent: numbers of the latent for each number of the clip."""
        return 100 * self.numbers / (_COLOURS * FRAMES * self.side**2)


@dataclass(frozen=True)
class Cost:
    """The cost of a training step for one clip: floating-point operations, and most bytes of activations at once."""

    flops: int
    activations: int


def _uniform(name: str, channels: int, source: str) -> Latent:
    """A latent that is 4 times shorter and 8 times smaller than the clip on each side."""
    shape = (channels, FRAMES // 4, SIDE // 8, SIDE // 8)
    return Latent(name=name, grids=[PatchGrid("uniform", shape, PATCH)], source=source)


_IMAGE_PATCH = (1, *PATCH[1:])
"""The paper's patch on a latent of a single moment."""

BASELINES = (
    _uniform("MAGVIT-v2", 5, "appendix C.1: 5 numbers, 4 x 8 x 8"),
    _uniform("EMU-3", 4, "appendix C.1: 4 numbers, 4 x 8 x 8"),
    _uniform("CV-VAE", 4, "appendix C.1: as EMU-3"),
    _uniform(
        "CogVideoX",
        16,
        "defaults of diffusers' AutoencoderKLCogVideoX: 16 numbers, 4 x 8 x 8; table 5 states .53 %, as of 4",
    ),
    Latent(
        name="iVideoGPT",
        grids=[PatchGrid("first frames", (64, 2, 16, 16), PATCH), PatchGrid("later frames", (64, 14, 4, 4), PATCH)],
        source="appendix C.1: 16 x 16 tokens of 64 numbers for each of 2 frames, 4 x 4 for each of 14, of clips of "
        "256 pixels; 224 would not divide into whole tokens",
        side=256,
    ),
    Latent(
        name="CMD",
        grids=[
            PatchGrid("content frame", (_COLOURS, 1, SIDE, SIDE), _IMAGE_PATCH),
            PatchGrid("motion", (2, 1, FRAMES, 2 * SIDE), _IMAGE_PATCH),
        ],
        source="appendix C.1: a frame [c, h, w] and a motion latent [d, h + w, f]; d = 2 is assumed, because table 1 "
        "states 6.85 %",
    ),
)
"""What the paper compares with, in the shapes of its appendix C.1, and CogVideoX of its table 5."""


def vidtwin_latents(config: VidTwinConfig) -> list[Latent]:
    """VidTwin's two latents, in the patches that DiTs of this project have, and in patches of as many places as others.

    The paper's patches of 2 x 2 x 2 do not divide 7 x 7 places, and the paper does not say what it did about that.

    Args:
        config: of the autoencoder. A way of cutting that does not divide its latents is left out.
    """
    space = LatentSpace(structure_shape=config.structure_shape, dynamics_shape=config.dynamics_shape)
    places = PATCH[0] * PATCH[1] * PATCH[2]
    ways = {
        f"VidTwin, patches {_by(PAPER.structure_patch)} and {_by(PAPER.dynamics_patch)}": PAPER,
        f"VidTwin, patches of {places} moments": DiTConfig(structure_patch=(places, 1, 1), dynamics_patch=(places, 1)),
    }
    found: list[Latent] = []
    for name, way in ways.items():
        try:
            found.append(Latent(name=name, grids=space.grids(way), source="this model"))
        except ValueError:  # the patch does not divide the latent
            continue
    return found


def _by(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))


def computed(latent: Latent) -> Cost:
    """The cost by a closed form for the operations, and from shapes alone for the memory.

    A matrix product of [N, a] and [a, b] takes 2 N a b operations, and its backward pass twice as many; the first layer
    needs no gradient of the latents. Attention multiplies two pairs of matrices, 2 x 2 N^2 d. What a fused kernel
    computes a second time in its backward pass is not counted.
    """
    tokens, edges = latent.tokens, sum(2 * grid.tokens * grid.values * WIDTH for grid in latent.grids)
    products = 2 * tokens * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN)
    attention = 2 * 2 * tokens**2 * WIDTH
    flops = 3 * LAYERS * (products + attention) + 2 * edges + 3 * edges
    with FakeTensorMode():
        return Cost(flops, _peak(latent))


def measured(latent: Latent) -> Cost:
    """The cost of a real step on the processor: torch's own count of operations, and the bytes that operators made."""
    # The plain kernel shows its matrix products to the counter; torch's table lacks the fused one of processors.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _step(latent, _model(latent))
    return Cost(counter.get_total_flops(), _peak(latent))


def _peak(latent: Latent) -> int:
    model = _model(latent)
    with Meter() as meter:
        meter.follow(model)
        _step(latent, model)
    return meter.peak


def _model(latent: Latent) -> PseudoDiT:
    """The transformer with weights of 0, made without memory first: torch copies layers, and cannot copy fake ones."""
    with torch.device("meta"):
        model = PseudoDiT(latent.grids)
    for part in model.modules():
        for name, weight in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.zeros(weight.shape)))
    return model


def _step(latent: Latent, model: PseudoDiT) -> None:
    given = [torch.zeros(1, *grid.shape) for grid in latent.grids]
    loss = torch.stack([part.square().mean() for part in model(given)]).mean()
    loss.backward()


def table(config: VidTwinConfig) -> str:
    """All costs as text.

    Raises:
        ValueError: VidTwin's latents cannot be cut into patches, or the model takes clips of another size.
    """
    clip, wanted = (config.frames, config.image_size), (FRAMES, SIDE)
    if clip != wanted:
        raise ValueError(
            f"--figure5 compares latents of clips of {_by((*wanted, SIDE))}, and model.frames={clip[0]} with "
            f"model.image_size={clip[1]} is another size; take configs/model/base.yaml"
        )
    ours = vidtwin_latents(config)
    if not ours:
        raise ValueError(
            "the latents of this model divide into no patches of 2 moments; choose model.structure.queries=16"
        )
    with torch.device("meta"):
        model = PseudoDiT(ours[0].grids)
    weights = sum(weight.numel() for weight in model.encoder.parameters())
    return "\n".join(
        [
            *_rows(ours),
            "",
            f"one training step of the pseudo-DiT ({counted(LAYERS, 'layer')}, width {WIDTH}, {weights / 1e6:.1f} M "
            "weights), fp32, for one clip; MB are activations at the peak of the step",
            f"weights, gradients and Adam's moments add 16 bytes a weight, {16 * weights / 1e6:.0f} MB, to all alike",
            *(f"{latent.name}: {latent.source}" for latent in BASELINES),
        ]
    )


def _rows(ours: Sequence[Latent]) -> list[str]:
    """The head of the table and its rows: first our latents, which are also measured, then the others."""
    rows = [["latent of one clip", "numbers", "rate %", "tokens", "GFLOP", "MB", "measured GFLOP", "MB"]]
    for latent in [*ours, *BASELINES]:
        costs = [computed(latent), *([measured(latent)] if latent in ours else [])]
        name = f"{latent.name} {' + '.join(_shape(grid) for grid in latent.grids)}"
        cells = [cell for cost in costs for cell in (f"{cost.flops / 1e9:.2f}", f"{cost.activations / 1e6:.1f}")]
        rows.append(
            [name, f"{latent.numbers}", f"{latent.rate:.2f}", f"{latent.tokens}", *cells, *[""] * (4 - len(cells))]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first.lstrip().ljust(widths[0]), *others]).rstrip())
    return lines


def _shape(grid: PatchGrid) -> str:
    return f"[{', '.join(map(str, grid.shape))}]"
