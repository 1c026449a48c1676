"""The architecture of a VidTwin as one checked configuration."""

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_pipeline.outside.documents import read_yaml

CONFIG_FILE = "config.yaml"
WEIGHTS_FILE = "model.safetensors"


COLOURS = 3


@dataclass(kw_only=True)
class StructureConfig:
    """Size of the structure latent [d_S, n_q, h_S, w_S] and of the network around it."""

    # n_q: moments in time the latent keeps [>= 1]
    queries: int = 16
    # d_S; the paper's table has 4, the released checkpoint 8 [>= 1]
    channels: int = 4
    # times the patch grid is halved: 14 -> h_S = 7 with 1 [>= 0]
    downsamplings: int = 1
    # width of the Q-Former's queries [>= 1]
    query_width: int = 64
    # attention heads of the Q-Former [>= 1]
    query_heads: int = 8
    # layers of the Q-Former; every second one looks at the frames [>= 1]
    query_layers: int = 6
    # width inside the Q-Former's MLPs [>= 1]
    query_hidden: int = 768
    # channels of the first convolution; doubled at every down-sampling [>= 1]
    conv_width: int = 128
    # dropout in the Q-Former while training; the released code trains with 0.1 [>= 0, < 1]
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("queries", "channels", "query_width", "query_heads", "query_layers", "query_hidden", "conv_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.structure.{name}={getattr(self, name)} must be at least 1")
        if self.downsamplings < 0:
            raise ValueError(
                f"model.structure.downsamplings={self.downsamplings} must not be negative; 0 keeps the grid"
            )
        if self.query_width % self.query_heads:
            raise ValueError(
                f"model.structure.query_heads={self.query_heads} does not divide "
                f"model.structure.query_width={self.query_width}; choose a divisor"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.structure.dropout={self.dropout} must be in [0, 1)")


def reduced_grid(grid: int, downsamplings: int) -> int:
    """Side of a grid after that many stride-2 convolutions, which round up: 7 -> 4 -> 2."""
    while downsamplings and grid > 1:
        grid, downsamplings = (grid + 1) // 2, downsamplings - 1
    return grid


@dataclass(kw_only=True)
class DynamicsConfig:
    """Size of the dynamics latent [d_D, f, w_D + h_D]."""

    # d_D [>= 1]
    channels: int = 8
    # times the patch grid is halved before it is averaged: 14 -> h_D = w_D = 7 with 1 [>= 0]
    downsamplings: int = 1

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"model.dynamics.channels={self.channels} must be at least 1")
        if self.downsamplings < 0:
            raise ValueError(
                f"model.dynamics.downsamplings={self.downsamplings} must not be negative; 0 keeps the grid"
            )


@dataclass(kw_only=True)
class VidTwinConfig:
    """Architecture of a VidTwin; the defaults are the paper's base model."""

    # frames of a clip [>= 1]
    frames: int = 16
    # frames of the shortest clip it also takes: any number from here to `frames`; 0 = only `frames` [>= 0]
    min_frames: int = 0
    # height and width of a clip in pixels [>= 1]
    image_size: int = 224
    # side of a patch in pixels; a patch is one frame long [>= 1]
    patch_size: int = 16
    # width of the transformers [>= 4]
    width: int = 768
    # blocks of the encoder, and as many of the decoder [>= 1]
    depth: int = 16
    # attention heads [>= 1]
    heads: int = 12
    # a frame attends only to itself and earlier frames
    causal: bool = True
    # side of the patch grid in whose coordinates patch positions are given, for weights that were trained at another
    # image size (7 after training at 112 pixels with patches of 16); 0 = the grid of this model [>= 0]
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
                most = next(n for n in range(downsamplings) if reduced_grid(self.grid, n) < 2)
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


MOST = {
    "frames": 4096,
    "image_size": 16384,
    "patch_size": 4096,
    "width": 32768,
    "depth": 512,
    "heads": 1024,
    "position_grid": 4096,
    "structure.queries": 4096,
    "structure.channels": 4096,
    "structure.query_width": 32768,
    "structure.query_heads": 1024,
    "structure.query_layers": 512,
    "structure.query_hidden": 131072,
    "structure.conv_width": 8192,
    "dynamics.channels": 4096,
}
"""Largest numbers of a model that somebody else describes. Those of the paper are far smaller."""
MOST_WEIGHTS = 10**12
"""Weights of such a model, which in fp32 would take 4 TB."""
MOST_TABLE = 10**9
"""Numbers in a table that such a model computes when it is built, whatever its weights are; in fp64 they take 8 GB."""


def check_buildable(config: VidTwinConfig, source: str) -> None:
    """Refuse a description of a model that no machine could build, before anything is built.

    Raises:
        ValueError: naming the file and the key.
    """
    for key, most in MOST.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        if value > most:
            raise ValueError(
                f"{source}: model.{key}={value} is more than {most}, which no machine can build; correct it"
            )
    if 2 * config.depth * 12 * config.width**2 > MOST_WEIGHTS:
        raise ValueError(
            f"{source}: model.width={config.width} with model.depth={config.depth} has more than {MOST_WEIGHTS:.0e} "
            "weights, which no machine can build; correct it"
        )
    if config.grid**2 * config.width > MOST_TABLE:
        raise ValueError(
            f"{source}: model.image_size={config.image_size} with model.patch_size={config.patch_size} has "
            f"{config.grid**2} patches, whose positions have more than {MOST_TABLE:.0e} numbers; correct it"
        )
    if (config.frames - config.shortest) * config.frames**2 > MOST_TABLE:
        raise ValueError(
            f"{source}: model.min_frames={config.min_frames} with model.frames={config.frames} has resamplings of more "
            f"than {MOST_TABLE:.0e} numbers; correct it"
        )


def read_config(file: Path) -> VidTwinConfig:
    """The `model` section of a YAML file as a checked configuration.

    The file may come from anybody: it is data, so nothing in it is resolved, and its numbers are bounded.

    Raises:
        ValueError: the file is no such YAML, or describes a model that cannot be; it names the file and the key.
        OSError: the file cannot be read.
    """
    document = read_yaml(file)
    section = document.get("model") if isinstance(document, dict) else None
    if not isinstance(section, dict):
        raise ValueError(f"{file} has no section `model`")
    try:
        built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VidTwinConfig), section))
    except OmegaConfBaseException as error:
        raise ValueError(f"{file}: model.{error.full_key}: {str(error.msg).splitlines()[0]}") from error
    except (ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    assert isinstance(built, VidTwinConfig)
    check_buildable(built, str(file))
    return built


KINDS = ("2d", "3d")


NORMS = ("batch", "group", "none")


GROUPS = 32


@dataclass(kw_only=True)
class DiscriminatorConfig:
    """The adversary; the defaults are the released checkpoint's."""

    # 2d judges frames one by one, 3d the clip
    kind: str = "2d"
    # batch as released; group or none make the objective independent of how a batch is split into micro-batches
    norm: str = "batch"
    # channels of the first layer [>= 1]
    width: int = 64
    # layers between the first and the last; all but one of them halve the frame [>= 1]
    layers: int = 3

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("norm", NORMS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"discriminator.{name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"discriminator.{name}={getattr(self, name)} must be at least 1")
        if self.norm == "group" and (2 * self.width) % GROUPS:
            raise ValueError(
                f"discriminator.width={self.width}: its layers do not divide into {GROUPS} groups; "
                f"use a multiple of {GROUPS // 2}, or discriminator.norm=none"
            )
