"""The architecture of a VidTwin as one checked configuration."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.dynamics import DynamicsConfig, reduced_grid
from model.patches import COLOURS
from model.structure import StructureConfig

CONFIG_FILE = "config.yaml"


@dataclass(kw_only=True)
class VidTwinConfig:
    """Architecture of a VidTwin; the defaults are the paper's base model."""

    # frames of a clip
    frames: int = 16
    # frames of the shortest clip it also takes: any number from here to `frames`; 0 = only `frames`
    min_frames: int = 0
    # height and width of a clip in pixels
    image_size: int = 224
    # side of a patch in pixels; a patch is one frame long
    patch_size: int = 16
    # width of the transformers
    width: int = 768
    # blocks of the encoder, and as many of the decoder
    depth: int = 16
    # attention heads
    heads: int = 12
    # a frame attends only to itself and earlier frames
    causal: bool = True
    # side of the patch grid in whose coordinates patch positions are given, for weights that were trained at another
    # image size (7 after training at 112 pixels with patches of 16); 0 = the grid of this model
    position_grid: int = 0
    # the structure latent
    structure: StructureConfig = field(default_factory=StructureConfig)
    # the dynamics latent
    dynamics: DynamicsConfig = field(default_factory=DynamicsConfig)

    def __post_init__(self) -> None:
        for name in ("frames", "image_size", "patch_size", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.min_frames <= self.frames:
            raise ValueError(
                f"model.min_frames={self.min_frames} must lie in [1, model.frames={self.frames}], or be 0 for no other "
                "number of frames"
            )
        if self.position_grid < 0:
            raise ValueError(
                f"model.position_grid={self.position_grid} must not be negative; 0 means the grid of the model"
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"model.patch_size={self.patch_size} does not divide model.image_size={self.image_size}; "
                f"use model.image_size={max(1, self.image_size // self.patch_size) * self.patch_size}"
            )
        if self.width % self.heads:
            raise ValueError(
                f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor of the width"
            )
        if self.width % 4:
            raise ValueError(
                f"model.width={self.width} must be a multiple of 4, as sines and cosines of rows and columns share it"
            )
        for name, downsamplings in (
            ("structure", self.structure.downsamplings),
            ("dynamics", self.dynamics.downsamplings),
        ):
            if downsamplings and reduced_grid(self.grid, downsamplings - 1) < 2:
                most = max(n for n in range(downsamplings) if n == 0 or reduced_grid(self.grid, n - 1) >= 2)
                raise ValueError(
                    f"model.{name}.downsamplings={downsamplings} halves the {self.grid}x{self.grid} patch grid "
                    f"past 1x1; use at most {most}, or a smaller model.patch_size"
                )

    @property
    def grid(self) -> int:
        """Patches along a side of a frame."""
        return self.image_size // self.patch_size

    @property
    def shortest(self) -> int:
        """Frames of the shortest clip that the model takes."""
        return self.min_frames or self.frames

    @property
    def structure_shape(self) -> tuple[int, int, int, int]:
        """(d_S, n_q, h_S, w_S)."""
        side = reduced_grid(self.grid, self.structure.downsamplings)
        return self.structure.channels, self.structure.queries, side, side

    @property
    def dynamics_shape(self) -> tuple[int, int, int]:
        """(d_D, f, w_D + h_D) of a clip of `frames` frames; shorter clips have a shorter f."""
        return self.dynamics.channels, self.frames, 2 * reduced_grid(self.grid, self.dynamics.downsamplings)

    @property
    def compression_rate(self) -> float:
        """Numbers in the latents over numbers in the clip, the paper's definition (0.205 % for its base model)."""
        d_s, queries, h_s, w_s = self.structure_shape
        d_d, frames, sides = self.dynamics_shape
        return (d_s * queries * h_s * w_s + d_d * frames * sides) / (COLOURS * self.frames * self.image_size**2)


def read_config(file: Path) -> VidTwinConfig:
    """The `model` section of a YAML file as a checked configuration."""
    try:
        document = OmegaConf.load(file)
        section = document.get("model") if isinstance(document, DictConfig) else None
        if section is None:
            raise ValueError(f"{file} has no section `model`")
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VidTwinConfig), section))
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: model.{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    assert isinstance(built, VidTwinConfig)
    return built
