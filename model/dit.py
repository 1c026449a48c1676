"""A diffusion transformer that makes VidTwin's latents (paper sections 3.5 and D.3; Peebles and Xie, "DiT", ICCV 2023).

The structure latent is a video [d_S, n_q, h, w] and the dynamics latent a video of one frame [d_D, 1, f, w + h]. Both
are cut into 3-D patches, get positions of their own, and are put end to end: one sequence of tokens, in which each
token sees all others. The network works on normalised latents; its `normaliser` carries the statistics.
B batch, N tokens, C width.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from model.config import WEIGHTS_FILE
from model.dit_config import DIT_CONFIG_FILE, Conditioning, DiTConfig, DiTDescription, LatentSpace, ProcessConfig
from model.dit_parts import (
    ClassCondition,
    ClassTokens,
    Condition,
    DiTBlock,
    LastLayer,
    TextCondition,
    TextTokens,
    TimeEmbedding,
)
from model.initial import normal_
from model.latent_statistics import Normaliser, Statistics
from model.network import Latents
from model.patches3d import from_patches, positions3d, to_patches
from model.precision import FixedTables
from model.provenance import Provenance, metadata_of, read_provenance, write_provenance
from model.recompute import Mode, set_recomputation
from model.transformer import RowLinear
from model.weights import check_module_file, load_module, save_module


class DiT(FixedTables):
    """The network that a diffusion asks what noisy latents were made of.

    Args:
        config: the architecture.
        space: the latents and conditions that it is for.
        process: the noise process that it undoes; the network does not use it, and `save_pretrained` writes it down.
        statistics: what latents are normalised by; None for weights that are loaded afterwards.
        empty_caption: with text, the embeddings of the empty caption, [text_empty_tokens, text_width]; None for weights
            that are loaded afterwards.
    Raises:
        ValueError: patch sizes that do not divide the latents, a condition that they do not have, or statistics that do
            not fit; the message names the key.

    Attributes:
        provenance: where the weights come from; None for random weights.
    """

    positions: Tensor

    def __init__(
        self,
        config: DiTConfig,
        space: LatentSpace,
        process: ProcessConfig | None = None,
        statistics: Statistics | None = None,
        empty_caption: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config, self.space, self.process = config, space, process or ProcessConfig()
        self.provenance: Provenance | None = None
        self.structure_grid, self.dynamics_grid = grids = space.grids(config)
        space.check_condition(config)
        self.normaliser = Normaliser(space, statistics)
        self.register_table("positions", torch.cat([positions3d(grid, config.width) for grid in grids]))
        self.structure_in, self.dynamics_in = (RowLinear(grid.values, config.width) for grid in grids)
        self.time = TimeEmbedding(config.width)
        self.context: nn.Module | None = None
        context_width = 0
        if config.condition is Conditioning.class_:
            self.context, context_width = ClassTokens(len(space.classes), config.class_width), config.class_width
        elif config.condition is Conditioning.text:
            shape = (space.text_empty_tokens, space.text_width)
            if empty_caption is not None and tuple(empty_caption.shape) != shape:
                raise ValueError(f"the empty caption has the shape {list(empty_caption.shape)}, and not {list(shape)}")
            self.context = TextTokens(torch.zeros(shape) if empty_caption is None else empty_caption)
            context_width = space.text_width
        self.blocks = nn.ModuleList(DiTBlock(config, context_width) for _ in range(config.depth))
        self.last = LastLayer(config.width, (grids[0].values, grids[1].values))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases, normal ones for the time; whatever ends a branch begins at 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time.up, self.time.down):
            normal_(layer.weight, std=0.02)
        ends = [self.last.modulation, self.last.structure, self.last.dynamics]
        for block in self.blocks:
            assert isinstance(block, DiTBlock)
            ends += [block.modulation] + ([block.cross.out] if block.cross is not None else [])
        for layer in ends:
            nn.init.zeros_(layer.weight)

    def forward(self, structure: Tensor, dynamics: Tensor, times: Tensor, condition: Condition = None) -> Latents:
        """What the network says of noisy latents: the latents without noise, or the velocity (`process.objective`).

        Args:
            structure: [B, d_S, n_q, h, w], normalised and noisy; cast to the weights' dtype.
            dynamics: [B, d_D, f, w + h], likewise.
            times: floats [B] in [0, 1000]: steps of the diffusion, or 1000 x the times of flow matching.
            condition: of the kind that the network was built for.
        Raises:
            ValueError: latents of another shape, or another kind of condition.
        """
        self._check(structure, dynamics, condition)
        dtype = self.structure_in.weight.dtype
        tokens = [
            self.structure_in(to_patches(structure.to(dtype), self.structure_grid)),
            self.dynamics_in(to_patches(dynamics[:, :, None].to(dtype), self.dynamics_grid)),
        ]
        x = torch.cat(tokens, dim=1) + self.positions.to(dtype)
        time = self.time(times)
        context, mask = self.context(condition) if self.context is not None else (None, None)
        context = None if context is None else context.to(dtype)
        for block in self.blocks:
            x = block(x, time, context, mask)
        patches_s, patches_d = self.last(x, time, self.structure_grid.tokens)
        return Latents(
            from_patches(patches_s, self.structure_grid), from_patches(patches_d, self.dynamics_grid).squeeze(2)
        )

    def _check(self, structure: Tensor, dynamics: Tensor, condition: Condition) -> None:
        expected = {"structure": self.space.structure_shape, "dynamics": self.space.dynamics_shape}
        for (name, shape), actual in zip(expected.items(), (structure.shape, dynamics.shape), strict=True):
            if tuple(actual[1:]) != shape:
                raise ValueError(
                    f"{name} has shape {list(actual)}, but this model needs [B, {', '.join(map(str, shape))}]"
                )
        kinds = {Conditioning.none: type(None), Conditioning.class_: ClassCondition, Conditioning.text: TextCondition}
        if not isinstance(condition, kinds[self.config.condition]):
            raise ValueError(
                f"dit.condition={self.config.condition.value} needs a {kinds[self.config.condition].__name__}, not "
                f"{type(condition).__name__}"
            )

    def class_numbers(self, names: Iterable[str]) -> list[int]:
        """The numbers of classes by their names.

        Raises:
            ValueError: a class that the model does not know.
        """
        numbers = {name: number for number, name in enumerate(self.space.classes)}
        found = []
        for name in names:
            if name not in numbers:
                raise ValueError(f"class {name!r} is not one of the model's: {', '.join(self.space.classes)}")
            found.append(numbers[name])
        return found

    def set_activation_checkpointing(self, mode: Mode, every: int = 1) -> None:
        """Trade time for memory in the blocks; see `set_recomputation`."""
        set_recomputation((self.blocks,), mode, every)

    @property
    def tokens(self) -> int:
        """N, of both latents."""
        return self.structure_grid.tokens + self.dynamics_grid.tokens

    def flops_per_sample(self) -> float:
        """Floating-point operations of one training step on one clip: 6 for each weight and each token it multiplies.

        Attention products are left out, so that the model FLOP utilisation is not flattered by them, and so are the
        modulations and the keys and values of the condition, which see one vector a clip or a few tokens.
        """
        once = {
            id(weight)
            for block in self.blocks
            for part in (block.modulation, block.cross and block.cross.key_value)  # type: ignore[union-attr]
            if isinstance(part, nn.Module)
            for weight in part.parameters()
        }
        return 6.0 * self.tokens * sum(p.numel() for p in self.blocks.parameters() if id(p) not in once)

    # ---- on disk --------------------------------------------------------------------------------------------------

    @property
    def description(self) -> DiTDescription:
        """What `config.json` says."""
        return DiTDescription(dit=self.config, latents=self.space, process=self.process)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, model.safetensors, and provenance.json where it is known."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_module(self, directory / WEIGHTS_FILE, metadata_of(self.provenance))
        if self.provenance is not None:
            write_provenance(directory, self.provenance)
        self.description.write(directory / DIT_CONFIG_FILE)

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device = "cpu") -> DiT:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Args:
            path: the directory.
            device: where the weights go.
        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a configuration or weights that do not fit, naming the key.
        """
        directory = Path(path)
        for name in (DIT_CONFIG_FILE, WEIGHTS_FILE):
            if not (directory / name).exists():
                raise FileNotFoundError(
                    f"{directory / name} not found; the directory of a DiT holds {DIT_CONFIG_FILE} and {WEIGHTS_FILE}"
                )
        described = DiTDescription.read(directory / DIT_CONFIG_FILE)
        with torch.device("meta"):  # before memory is taken for the weights
            check_module_file(cls(described.dit, described.latents, described.process), directory / WEIGHTS_FILE)
        model = cls(described.dit, described.latents, described.process)
        load_module(model, directory / WEIGHTS_FILE)
        model.provenance = read_provenance(directory / WEIGHTS_FILE)
        return model.to(device).eval()
