"""VidTwin in the manner of diffusers' autoencoders: `encode(x).latent_dist`, `decode(z).sample`, a `config.json`.

VidTwin has two latents, of other channels and other axes, and a network that denoises them patches each in its own
way. So z is a pair with names, `Latents(structure, dynamics)`, and not one flat tensor, in which channels and axes
would be lost. Where one sequence is wanted, as in the paper's section on generation, patches of the two are joined
along their length after each was embedded to a common width.

B batch, T frames, H = W pixels; shapes of the latents are in `Latents`.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.config import DynamicsConfig, StructureConfig, VidTwinConfig
from model.export.formats import AUTO_MAP, CODE_FILE, SETTINGS_FILE, TENSORS_FILE
from model.network import Latents, Posteriors, VidTwinNetwork, check_range
from model.noise import Noise, draw_noise

if find_spec("diffusers"):
    from diffusers import ConfigMixin, ModelMixin

    class Pretrained(ModelMixin, ConfigMixin):
        """Loading, saving and configuration as diffusers has them; what is saved has this file of code beside it."""

        config_name = SETTINGS_FILE

        def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs: Any) -> None:
            """Write the configuration and this file, without which `AutoModel` could load nothing of the directory.

            `save_pretrained` calls it. Arguments: of diffusers' `ConfigMixin.save_config`.
            """
            code = Path(__file__)
            assert code.name == CODE_FILE, "the class of model/ is not in one file; export it with launch/export.py"
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            (Path(save_directory) / CODE_FILE).write_bytes(code.read_bytes())
            super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

        def to_json_string(self) -> str:
            """The text of the configuration, which also says where `AutoModel` finds the class."""
            settings = json.loads(super().to_json_string())
            return json.dumps(settings | {"auto_map": AUTO_MAP}, indent=2, sort_keys=True) + "\n"

else:

    class Pretrained(nn.Module):  # type: ignore[no-redef]
        """What of diffusers' `ModelMixin` and `ConfigMixin` is needed, for a machine without diffusers."""

        config: SimpleNamespace

        def register_to_config(self, **settings: Any) -> None:
            """Keep the settings as `config`."""
            self.config = SimpleNamespace(**settings)

        @classmethod
        def from_pretrained(cls, directory: str | Path) -> "Pretrained":
            """Load a directory with `config.json` and the weights, in evaluation mode.

            Raises:
                FileNotFoundError: a file is missing.
                RuntimeError: weights that do not fit.
            """
            from safetensors.torch import load_file

            settings = json.loads((Path(directory) / SETTINGS_FILE).read_text("utf-8"))
            arguments = {name: value for name, value in settings.items() if name != "auto_map" and name[0] != "_"}
            model = cls(**arguments)
            model.load_state_dict(load_file(Path(directory) / TENSORS_FILE))
            return model.eval()


class LatentDistribution:
    """The posteriors of a batch's latents: independent normals around `mean` with log-variance `logvar`.

    Attributes:
        posteriors: one `DiagonalGaussian` for each of structure, dynamics_w, dynamics_h.
        mean, logvar, std, var: of both latents, each `Latents`.
    """

    def __init__(self, posteriors: Posteriors, config: VidTwinConfig) -> None:
        structure, w, h = posteriors
        self._config = config
        self.posteriors = posteriors
        self.mean = posteriors.latents(None)
        self.logvar = Latents(structure.logvar, torch.cat([w.logvar, h.logvar], dim=-1))
        self.std = Latents(*(torch.exp(0.5 * part) for part in self.logvar))
        self.var = Latents(*(part.exp() for part in self.logvar))

    def sample(self, generator: torch.Generator | Sequence[torch.Generator] | None = None) -> Latents:
        """One draw.

        Args:
            generator: one for the batch, one for each clip, or None for torch's own. The numbers are drawn on its
                device, so a generator of the host gives the same draw for a model on any device.
        """
        clips, _, frames, _ = self.mean.dynamics.shape
        first = generator[0] if isinstance(generator, Sequence) else generator
        device = self.mean.dynamics.device
        noise = draw_noise(self._config, clips, frames, device if first is None else first.device, generator)
        return self.posteriors.latents(Noise(*(numbers.to(device) for numbers in noise)))

    def mode(self) -> Latents:
        """The means, which are also the most likely values."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence of each clip's latents from N(0, 1) in nats, [B]."""
        terms = (
            0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).flatten(1).sum(1)
            for mean, logvar in zip(self.mean, self.logvar, strict=True)
        )
        return torch.stack(list(terms)).sum(0)


class EncoderOutput(NamedTuple):
    """What `encode` returns."""

    latent_dist: LatentDistribution


class DecoderOutput(NamedTuple):
    """What `decode` and the whole autoencoder return: a video [B, 3, T, H, W], about in [-1, 1], not clamped to it."""

    sample: Tensor


class AutoencoderVidTwin(Pretrained):
    """VidTwin (Wang et al., CVPR 2025, arXiv 2412.17726).

    Args:
        frames, min_frames, image_size, patch_size, width, depth, heads, causal, position_grid: of `VidTwinConfig`.
        structure, dynamics: fields of `StructureConfig` and of `DynamicsConfig`.
        latents_mean, latents_std: of the training data's latents by channel, d_S + d_D numbers, those of the structure
            first; None where nobody has measured them. Only `normalize` and `denormalize` use them.
    """

    def __init__(
        self,
        *,
        frames: int,
        min_frames: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        causal: bool,
        position_grid: int,
        structure: dict[str, Any],
        dynamics: dict[str, Any],
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ) -> None:
        super().__init__()
        sizes: dict[str, Any] = dict(
            frames=frames,
            min_frames=min_frames,
            image_size=image_size,
            patch_size=patch_size,
            width=width,
            depth=depth,
            heads=heads,
            causal=causal,
            position_grid=position_grid,
        )
        self.register_to_config(
            **sizes, structure=structure, dynamics=dynamics, latents_mean=latents_mean, latents_std=latents_std
        )
        config = VidTwinConfig(structure=StructureConfig(**structure), dynamics=DynamicsConfig(**dynamics), **sizes)
        self.vidtwin = VidTwinNetwork(config)

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput | tuple[LatentDistribution]:
        """The posteriors of a video's latents, as `latent_dist`.

        Args:
            x: [B, 3, T, H, W] floats in [-1, 1].
            return_dict: False for a plain tuple.
        Raises:
            ValueError: wrong shape, dtype or value range.
        """
        posteriors = self.vidtwin.posteriors(x)
        check_range(x)
        output = EncoderOutput(LatentDistribution(posteriors, self.vidtwin.config))
        return output if return_dict else (output.latent_dist,)

    def decode(self, z: Latents | tuple[Tensor, Tensor], return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """The video of latents, as `sample`.

        Args:
            z: structure and dynamics, as `latent_dist` gives them.
            return_dict: False for a plain tuple.
        Raises:
            ValueError: latents of another shape than this model's.
        """
        output = DecoderOutput(self.vidtwin.decode(Latents(*z)))
        return output if return_dict else (output.sample,)

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> DecoderOutput | tuple[Tensor]:
        """Encode a video and decode its means, or one draw with `sample_posterior`. Arguments as above."""
        posterior = self.encode(sample)[0]
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)

    def normalize(self, z: Latents) -> Latents:
        """Latents of mean 0 and deviation 1 in each channel, for a diffusion model.

        Raises:
            ValueError: the configuration has no `latents_mean` and `latents_std`.
        """
        return Latents(*((part - mean) / std for part, (mean, std) in zip(z, self._statistics(z), strict=True)))

    def denormalize(self, z: Latents) -> Latents:
        """Undo `normalize`: latents that `decode` takes."""
        return Latents(*(part * std + mean for part, (mean, std) in zip(z, self._statistics(z), strict=True)))

    def _statistics(self, z: Latents) -> list[tuple[Tensor, Tensor]]:
        """Mean and deviation for each latent, shaped to be broadcast over it."""
        mean, std = self.config.latents_mean, self.config.latents_std
        if mean is None or std is None:
            raise ValueError(
                "config.json has no latents_mean and latents_std; measure the latents of your data and write them there"
            )
        d_structure = self.vidtwin.config.structure.channels
        found = []
        for part, channels in zip(z, (slice(None, d_structure), slice(d_structure, None)), strict=True):
            shape = (-1, *[1] * (part.dim() - 2))
            found.append(
                (torch.tensor(mean[channels]).to(part).view(shape), torch.tensor(std[channels]).to(part).view(shape))
            )
        return found
