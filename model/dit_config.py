"""What a DiT is, what it predicts, and the latents that it is for, as checked configurations (see model/dit.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from data_pipeline.outside.documents import read_json

DIT_CONFIG_FILE = "config.json"


class Conditioning(Enum):
    """What the network is told of the clip that it makes."""

    none = "none"
    class_ = "class"
    text = "text"


class Objective(Enum):
    """What the network predicts."""

    x0 = "x0"
    flow = "flow"


class NoiseSchedule(Enum):
    """How much noise each of the steps of the diffusion adds."""

    linear = "linear"
    scaled_linear = "scaled_linear"
    cosine = "cosine"


@dataclass(kw_only=True)
class DiTConfig:
    """Architecture of a DiT; the defaults are the paper's 18 layers of width 1152."""

    # width of the transformer; an even number [>= 2]
    width: int = 1152
    # blocks [>= 1]
    depth: int = 18
    # attention heads; they divide the width [>= 1]
    heads: int = 16
    # width inside the MLPs as a multiple of dit.width [>= 1]
    mlp_ratio: int = 4
    # patch of the structure latent: moments, rows, columns [each >= 1]
    structure_patch: tuple[int, int, int] = (2, 1, 1)
    # patch of the dynamics latent: frames, places [each >= 1]
    dynamics_patch: tuple[int, int] = (2, 1)
    # none, class (of the dataset's labels), or text (token embeddings)
    condition: Conditioning = Conditioning.none
    # width of the class vector; paper: 256 [>= 1]
    class_width: int = 256
    # RMS norms on the queries and keys of every attention, which keep the logits small in long trainings
    qk_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_ratio", "class_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"dit.{name}={getattr(self, name)} must be at least 1")
        if self.width % 2:
            raise ValueError(f"dit.width={self.width} must be even, because sines and cosines share it")
        if self.width % self.heads:
            raise ValueError(f"dit.heads={self.heads} does not divide dit.width={self.width}; choose a divisor")
        for name, count in (("structure_patch", 3), ("dynamics_patch", 2)):
            sides = getattr(self, name)
            if len(sides) != count or min(sides) < 1:
                raise ValueError(f"dit.{name}={list(sides)} must be {count} sizes of at least 1")


@dataclass(kw_only=True)
class ProcessConfig:
    """The noise process that a DiT undoes; a sampler must know it."""

    # x0 (the paper: the network predicts the latents without noise) or flow (flow matching: it predicts the velocity
    # from the latents to the noise)
    objective: Objective = Objective.x0
    # noise of the steps, for x0: linear (DDPM and the code of DiT), scaled_linear (Stable Diffusion) or cosine
    schedule: NoiseSchedule = NoiseSchedule.linear
    # steps of the diffusion, for x0; paper: 1000 [>= 2]
    steps: int = 1000
    # rescale the schedule so that the last step is pure noise (Lin et al. 2024), for x0
    zero_terminal_snr: bool = False
    # factor by which flow matching moves the times towards the noise; 0 = by the size of the latents: the square root
    # of their numbers over 4096 [0 ... 1000]
    shift: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"process.steps={self.steps} must be at least 2; the paper has 1000")
        if not 0 <= self.shift <= 1000:
            raise ValueError(f"process.shift={self.shift} must lie in [0, 1000]; 0 follows the size of the latents")


@dataclass(frozen=True)
class PatchGrid:
    """A latent as a video, cut into 3-D patches.

    Attributes:
        name: for messages, as the setting of its patch size is called.
        shape: (C, T, H, W).
        patch: (t, h, w), which divide T, H and W.
    """

    name: str
    shape: tuple[int, int, int, int]
    patch: tuple[int, int, int]

    def __post_init__(self) -> None:
        for axis, size, side in zip(("moments", "rows", "columns"), self.shape[1:], self.patch, strict=True):
            if size % side:
                raise ValueError(
                    f"{self.name}={list(self.patch)}: {side} does not divide the {size} {axis} of a latent "
                    f"[C, T, H, W] = {list(self.shape)}; choose a divisor"
                )

    @property
    def cells(self) -> tuple[int, int, int]:
        """(T/t, H/h, W/w)."""
        _, *sizes = self.shape
        t, h, w = (size // side for size, side in zip(sizes, self.patch, strict=True))
        return t, h, w

    @property
    def tokens(self) -> int:
        """Patches of the latent."""
        return math.prod(self.cells)

    @property
    def values(self) -> int:
        """Numbers in a patch."""
        return self.shape[0] * math.prod(self.patch)


@dataclass(frozen=True, kw_only=True)
class LatentSpace:
    """The latents and conditions that a DiT is for; a dataset of latents decides them.

    Attributes:
        structure_shape: (d_S, n_q, h, w).
        dynamics_shape: (d_D, f, w + h).
        classes: names of the classes in the order of their numbers; empty without classes.
        text_width: width of the token embeddings of captions; 0 without text.
        text_encoder: SHA-256 of the encoder that made them, as dataset.json of the texts has it; empty without text.
        text_max_tokens: tokens of a caption at most.
        text_empty_tokens: tokens of the empty caption, which stands for a dropped one.
        autoencoder: SHA-256 over the weights of the model that encoded the latents, as dataset.json has it; empty where
            it is not known.
    """

    structure_shape: tuple[int, int, int, int]
    dynamics_shape: tuple[int, int, int]
    classes: tuple[str, ...] = ()
    text_width: int = 0
    text_encoder: str = ""
    text_max_tokens: int = 0
    text_empty_tokens: int = 0
    autoencoder: str = ""

    def __post_init__(self) -> None:
        for name, count in (("structure_shape", 4), ("dynamics_shape", 3)):
            shape = getattr(self, name)
            if len(shape) != count or min(shape) < 1:
                raise ValueError(f"{name}={list(shape)} must be {count} sizes of at least 1")
        if self.dynamics_shape[-1] % 2:
            raise ValueError(
                f"dynamics_shape={list(self.dynamics_shape)}: the last size must be even, because one half of it "
                "varies along the width and the other along the height"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes={list(self.classes)} names a class twice")

    @property
    def values(self) -> int:
        """Numbers in both latents of a clip."""
        return math.prod(self.structure_shape) + math.prod(self.dynamics_shape)

    def grids(self, config: DiTConfig) -> tuple[PatchGrid, PatchGrid]:
        """Both latents as videos in patches; the dynamics is a video of one frame, [d_D, 1, f, w + h].

        Raises:
            ValueError: a patch size does not divide its latent; the message names the setting.
        """
        channels, frames, sides = self.dynamics_shape
        structure = PatchGrid("dit.structure_patch", self.structure_shape, config.structure_patch)
        dynamics = PatchGrid("dit.dynamics_patch", (channels, 1, frames, sides), (1, *config.dynamics_patch))
        return structure, dynamics

    def check_condition(self, config: DiTConfig) -> None:
        """Refuse a condition of which these latents know nothing.

        Raises:
            ValueError: naming the key.
        """
        if config.condition is Conditioning.class_ and not self.classes:
            raise ValueError("dit.condition=class needs labels, and the latents have none; set dit.condition=none")
        if config.condition is Conditioning.text and min(self.text_width, self.text_empty_tokens) < 1:
            raise ValueError(
                "dit.condition=text needs token embeddings of captions, and there are none; set dit.condition=none"
            )


PAPER = DiTConfig()


@dataclass(frozen=True, kw_only=True)
class DiTDescription:
    """All that `config.json` of a DiT says."""

    dit: DiTConfig
    latents: LatentSpace
    process: ProcessConfig = field(default_factory=ProcessConfig)

    def write(self, file: Path) -> None:
        """Write it as JSON."""
        document = {name: _plain(asdict(part)) for name, part in vars(self).items()}
        file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")

    @staticmethod
    def read(file: Path) -> DiTDescription:
        """Undo `write`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no description of a DiT; the message names the file and the key.
        """
        document = read_json(file)
        try:
            dit, latents, process = (_section(document, name) for name in ("dit", "latents", "process"))
            dit["condition"] = Conditioning(dit["condition"])
            process["objective"] = Objective(process["objective"])
            process["schedule"] = NoiseSchedule(process["schedule"])
            for section, cls in ((dit, DiTConfig), (latents, LatentSpace), (process, ProcessConfig)):
                _check_types(section, cls)
            _check_numbers(dit, latents, process)
            found = DiTDescription(
                dit=DiTConfig(**dit), latents=LatentSpace(**latents), process=ProcessConfig(**process)
            )
            _check_buildable(found)
            return found
        except KeyError as error:
            raise ValueError(f"{file} has no key {error}; it must be the {DIT_CONFIG_FILE} of a DiT") from error
        except (TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"{file}: {error}") from error


MOST = {"width": 32768, "depth": 512, "heads": 1024, "mlp_ratio": 64, "class_width": 32768, "steps": 10**6}
MOST_OTHERS = 10**6
"""Largest numbers of a DiT that somebody else describes: those of `MOST`, and all others."""
MOST_WEIGHTS = 10**12
"""Weights of such a DiT, which in fp32 would take 4 TB."""
MOST_TABLE = 10**9
"""Numbers in its table of positions, which is computed when it is built, whatever its weights are."""
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _check_types(section: Mapping[str, Any], cls: type) -> None:
    """Refuse values of other types than the fields have. Raises: ValueError, naming the key."""
    for key, kind in get_type_hints(cls).items():
        if key not in section:
            continue  # it has a default, or the constructor misses it
        several = get_origin(kind) is tuple
        one = get_args(kind)[0] if several else kind
        values = section[key] if several else (section[key],)
        kinds = {int, float} if one is float else {one}  # JSON may say 1 for 1.0, and Python counts true as a number
        if not isinstance(values, tuple) or any(type(value) not in kinds for value in values):
            words = _WORDS.get(one, one.__name__)
            raise ValueError(f"{key}={section[key]!r} must be {f'a list, each of it {words}' if several else words}")


def _check_numbers(*sections: Mapping[str, Any]) -> None:
    """Refuse numbers of which no machine could build a network. Raises: ValueError, naming the key."""
    for section in sections:
        for key, value in section.items():
            most = MOST.get(key, MOST_OTHERS)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and not -most <= number <= most:
                    raise ValueError(f"{key}={number} is beyond {most}, which no machine can build; correct it")


def _check_buildable(described: DiTDescription) -> None:
    """Refuse numbers that are possible alone, but not together. Raises: ValueError, naming the keys."""
    dit = described.dit
    if dit.depth * (10 + 2 * dit.mlp_ratio) * dit.width**2 > MOST_WEIGHTS:
        raise ValueError(
            f"width={dit.width} with depth={dit.depth} has more than {MOST_WEIGHTS:.0e} weights, which no machine can "
            "build; correct it"
        )
    tokens = sum(grid.tokens for grid in described.latents.grids(dit))
    if tokens * dit.width > MOST_TABLE:
        raise ValueError(
            f"structure_shape={list(described.latents.structure_shape)} and "
            f"dynamics_shape={list(described.latents.dynamics_shape)} have {tokens} patches, whose positions have more "
            f"than {MOST_TABLE:.0e} numbers; correct it"
        )


def _section(document: Any, name: str) -> dict[str, Any]:
    if not isinstance(document, Mapping) or not isinstance(document[name], Mapping):
        raise TypeError(f"its {name!r} must be keys with values")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in document[name].items()}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Enums as their values."""
    return {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
