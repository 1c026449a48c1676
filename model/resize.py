"""Weights trained at one clip size as weights for another.

Three layers of a VidTwin are as large as the clip: the mixing of queries into frames, and the two that stretch a
dynamics vector over the patch grid. All others see one patch, frame or query at a time. What such a layer maps is a
line of samples, so it moves to another number of samples between two resamplings, W' = R(out -> out') W R(in' -> in),
as patch embeddings do in FlexiViT (Beyer et al. 2023, section 3.4). Positions are not weights: `position_grid` of the
model's configuration says in which grid's coordinates they are given.
"""

from collections.abc import Mapping

from torch import Tensor

from model.config import VidTwinConfig
from model.resampling import resampling

# Layer -> whether its outputs and whether its inputs are samples of the clip.
SIZED_LAYERS = {
    "structure_decoder.mix": (True, False),
    "dynamics_decoder.stretch.0": (True, True),
    "dynamics_decoder.stretch.1": (True, True),
}


def resize_weights(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the layers that are as large as the clip to the wanted size; everything else stays as it is.

    Args:
        weights: a VidTwin's, of any clip size.
        wanted: weights of the shapes that are needed, by the same names; their values are not used.
    """
    resized = dict(weights)
    for layer, (outputs, inputs) in SIZED_LAYERS.items():
        name, bias = f"{layer}.weight", f"{layer}.bias"
        if name not in weights or name not in wanted or weights[name].shape == wanted[name].shape:
            continue
        weight = weights[name].double()
        (rows, columns), (rows_wanted, columns_wanted) = weight.shape, wanted[name].shape
        if outputs:
            weight = resampling(rows, rows_wanted) @ weight
            resized[bias] = (resampling(rows, rows_wanted) @ weights[bias].double()).to(weights[bias].dtype)
        if inputs:
            weight = weight @ resampling(columns_wanted, columns)
        resized[name] = weight.to(weights[name].dtype)
    return resized


def check_same_function(trained: VidTwinConfig, built: VidTwinConfig, source: str) -> None:
    """Refuse to put a model's weights into one that would compute something else with them, where no shape tells.

    Args:
        trained: configuration that the weights come from.
        built: configuration they are to go into.
        source: what to call the weights.
    Raises:
        ValueError: the key, and the remedy.
    """
    for key, before, after in (
        ("model.heads", trained.heads, built.heads),
        ("model.structure.query_heads", trained.structure.query_heads, built.structure.query_heads),
    ):
        if before != after:
            raise ValueError(f"{source} was trained with {key}={before}, not {after}; set {key}={before}")
    positions = trained.position_grid or trained.grid
    if built.position_grid == 0 and built.grid != positions:
        raise ValueError(
            f"{source} knows the positions of a {positions}x{positions} patch grid, and model.image_size="
            f"{built.image_size} has {built.grid}x{built.grid}: set model.position_grid={positions} to lay them over "
            f"the new grid, or model.position_grid={built.grid} to use positions that the weights have not seen"
        )
