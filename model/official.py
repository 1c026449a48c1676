"""The released VidTwin checkpoint and its YAML, translated into this project's names.

The released code (github.com/microsoft/VidTok, folder vidtwin) trains with Lightning: one pickle holds the autoencoder,
the discriminator, LPIPS and a learned log-variance under `state_dict`; `official_config` reads the YAML beside it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from model.config import CONFIG_FILE
from model.discriminator import build_discriminator
from model.lpips import LPIPS
from model.official_config import read_official_config
from model.vidtwin import VidTwin
from model.weights import load_pickle, save_module, save_tensors, tensors_of

DISCRIMINATOR_FILE = "discriminator.safetensors"
LPIPS_FILE = "lpips.safetensors"
LOGVAR_FILE = "logvar.safetensors"

# Our names to theirs, first match wins. `{n*3}` in a template is the matched number times three.
_VIDTWIN_NAMES = (
    (r"patch_in\.", "encoder.x_embedder.proj."),
    (r"pixels\.modulation", "decoder.final_layer.scale_shift_table"),
    (r"pixels\.linear\.", "decoder.final_layer.linear."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.modulation", r"\1.blocks.\2.scale_shift_table"),
    (r"(encoder|decoder)\.blocks\.(\d+)\.spatial\.qkv\.", r"\1.blocks.\2.attn.qkv."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.spatial\.out\.", r"\1.blocks.\2.attn.proj."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.temporal\.qkv\.", r"\1.blocks.\2.attn_temp.qkv."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.temporal\.out\.", r"\1.blocks.\2.attn_temp.proj."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.mlp\.up\.", r"\1.blocks.\2.mlp.fc1."),
    (r"(encoder|decoder)\.blocks\.(\d+)\.mlp\.down\.", r"\1.blocks.\2.mlp.fc2."),
    (r"structure_encoder\.qformer\.queries", "temporal_qformer.query_embeds"),
    (r"structure_encoder\.qformer\.norm\.", "temporal_qformer.qformer.layernorm."),
    (r"structure_encoder\.qformer\.layers\.(\d+)\.", r"temporal_qformer.qformer.encoder.layer.\1."),
    (r"structure_encoder\.conv_in\.", "conv_in."),
    (r"structure_encoder\.down\.(\d+)\.", "content_downsample_blocks.{n*2}."),
    (r"structure_encoder\.moments\.", "bottle_down."),
    (r"structure_decoder\.conv_in\.", "bottle_up.0."),
    (r"structure_decoder\.up\.(\d+)\.", "content_upsample_blocks.{n*3}."),
    (r"structure_decoder\.conv_out\.", "conv_out."),
    (r"structure_decoder\.widen\.", "cont_emb.0."),
    (r"structure_decoder\.mix\.", "cont_emb.2."),
    (r"dynamics_encoder\.down\.(\d+)\.", "downsample_motion_module.{n*2}."),
    (r"dynamics_encoder\.moments\.", "motion_head."),
    (r"dynamics_decoder\.widen\.", "motion_emb.0."),
    (r"dynamics_decoder\.hidden\.", "motion_emb.2."),
    (r"dynamics_decoder\.stretch\.(\d+)\.", "up_motion.{n*2}."),
)
# Inside a Q-Former layer, applied to the rest of the name.
_QUERY_LAYER_NAMES = (
    (r"among_queries\.(query|key|value)\.", r"attention.attention.\1."),
    (r"among_queries\.out\.", "attention.output.dense."),
    (r"among_queries\.norm\.", "attention.output.LayerNorm."),
    (r"to_frames\.(query|key|value)\.", r"crossattention.attention.\1."),
    (r"to_frames\.out\.", "crossattention.output.dense."),
    (r"to_frames\.norm\.", "crossattention.output.LayerNorm."),
    (r"up\.", "intermediate_query.dense."),
    (r"down\.", "output_query.dense."),
    (r"norm\.", "output_query.LayerNorm."),
)
# Keys of the checkpoint that nothing of ours is made from, with the reason.
UNUSED = {
    r"encoder\.final_layer\.(linear\.(weight|bias)|scale_shift_table)": "the encoder never calls its output layer",
    r"decoder\.x_embedder\.proj\.(weight|bias)": "the decoder never calls its patch embedding",
    r"(encoder|decoder)\.pos_embed(_temporal)?": "sine-cosine positions, recomputed; checked to agree",
    r"loss\.perceptual_loss\.scaling_layer\.(shift|scale)": "constants of LPIPS; checked to agree",
}


def official_name(ours: str) -> str:
    """The released checkpoint's name for one of `VidTwin.state_dict()`'s."""
    for pattern, template in _VIDTWIN_NAMES:
        match = re.match(pattern, ours)
        if match is None:
            continue
        rest = ours[match.end() :]
        if "qformer.layers" in ours:
            rest = _rename(_QUERY_LAYER_NAMES, rest)
        if "{n*" in template:
            factor = int(template[template.index("{n*") + 3])
            return re.sub(r"\{n\*\d\}", str(int(match[1]) * factor), template) + rest
        return match.expand(template) + rest
    raise AssertionError(f"no rule for {ours}")


def _rename(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, template in rules:
        match = re.match(pattern, name)
        if match is not None:
            return match.expand(template) + name[match.end() :]
    raise AssertionError(f"no rule for {name}")


def discriminator_name(ours: str, layers: int) -> str:
    """The released checkpoint's name for one of a batch-norm discriminator's; theirs count layers of one sequence."""
    part, _, rest = ours.partition(".")
    if part == "first":
        return f"loss.discriminator.main.0.{rest}"
    if part == "last":
        return f"loss.discriminator.main.{2 + 3 * layers}.{rest}"
    index, kind, rest = rest.split(".", 2)
    return f"loss.discriminator.main.{2 + 3 * int(index) + (kind == 'norm')}.{rest}"


def lpips_name(ours: str) -> str:
    """The released checkpoint's name for one of LPIPS's: VGG in five slices (each begins with a pool), `lin` heads."""
    part, index, rest = ours.split(".", 2)
    if part == "heads":
        return f"loss.perceptual_loss.lin{index}.model.1.{rest}"
    starts = (0, 4, 9, 16, 23)  # first layer of each slice in torchvision's numbering
    number = sum(start <= int(index) for start in starts)
    return f"loss.perceptual_loss.net.slice{number}.{index}.{rest}"


def _to_ours(name: str, value: Tensor) -> Tensor:
    """The same weight in our shape."""
    if (
        name == "patch_in.weight"
    ):  # a 3-D convolution [C, colour, 1, row, column] is a linear layer on (row, column, colour)
        return value[:, :, 0].permute(0, 2, 3, 1).flatten(1)
    if name == "structure_decoder.mix.weight":  # a convolution of kernel 1
        return value.squeeze(-1)
    return value


@dataclass(kw_only=True)
class Conversion:
    """What became of a checkpoint: files written, keys left out with the reason for each."""

    written: list[Path]
    unused: dict[str, str]


class _Checkpoint:
    """A state dict from which every key must be taken."""

    def __init__(self, source: str, weights: dict[str, Tensor]) -> None:
        self.source, self.weights = source, dict(weights)

    def fill(self, module: nn.Module, names: Mapping[str, str], convert: Callable[[str, Tensor], Tensor]) -> None:
        """Move official weights into a module; `names` gives the official name of each of its own."""
        state = module.state_dict()
        for ours, official in names.items():
            if official not in self.weights:
                raise ValueError(f"{self.source}: key {official!r} is missing")
            value = convert(ours, self.weights.pop(official))
            if value.shape != state[ours].shape:
                raise ValueError(
                    f"{self.source}: key {official!r} has shape {list(value.shape)} in our layout, but the YAML's "
                    f"architecture needs {list(state[ours].shape)}; do the two belong together?"
                )
            state[ours] = value.to(state[ours].dtype)
        module.load_state_dict(state)

    def agree(self, official: str, ours: Tensor) -> None:
        """Check a constant of the checkpoint against ours. (It stays, to be reported as unused.)"""
        if official not in self.weights:
            raise ValueError(f"{self.source}: key {official!r} is missing")
        theirs = self.weights[official].double().reshape(-1)
        if theirs.numel() != ours.numel() or not torch.allclose(theirs, ours.double().reshape(-1), atol=1e-5, rtol=0):
            raise ValueError(f"{self.source}: key {official!r} differs from what the YAML's architecture computes")

    def has(self, prefix: str) -> bool:
        return any(name.startswith(prefix) for name in self.weights)


def convert(checkpoint: str | Path, config: str | Path, output: str | Path) -> Conversion:
    """Translate an official checkpoint and its YAML into a `VidTwin.from_pretrained` directory.

    Writes config.yaml (`model`, and `discriminator` where there is one), model.safetensors and, where the checkpoint
    has them, discriminator.safetensors, lpips.safetensors and logvar.safetensors (one value, key `logvar`, shape [1]).

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a pickle with more than tensors; a key missing, unknown or of the wrong shape; an unsupported YAML.
            Nothing is written then.
    """
    vidtwin_config, discriminator_config = read_official_config(config)
    source = _Checkpoint(str(checkpoint), tensors_of(load_pickle(checkpoint), str(checkpoint)))
    vidtwin = VidTwin(vidtwin_config)
    source.fill(vidtwin, {name: official_name(name) for name in vidtwin.state_dict()}, _to_ours)
    for side in (vidtwin.encoder, vidtwin.decoder):
        prefix = "encoder" if side is vidtwin.encoder else "decoder"
        source.agree(f"{prefix}.pos_embed", side.patch_positions)
        source.agree(f"{prefix}.pos_embed_temporal", side.time_positions)
    modules: dict[str, nn.Module] = {}
    sections: dict[str, Any] = {"model": OmegaConf.structured(vidtwin_config)}
    if source.has("loss.discriminator."):
        discriminator = build_discriminator(discriminator_config)
        layers = discriminator_config.layers
        names = {name: discriminator_name(name, layers) for name in discriminator.state_dict()}
        source.fill(discriminator, names, lambda _, value: value)
        modules[DISCRIMINATOR_FILE] = discriminator
        sections["discriminator"] = OmegaConf.structured(discriminator_config)
    if source.has("loss.perceptual_loss."):
        lpips = LPIPS()
        names = {name: lpips_name(name) for name in lpips.state_dict() if name not in ("shift", "scale")}
        source.fill(lpips, names, lambda _, value: value)
        source.agree("loss.perceptual_loss.scaling_layer.shift", lpips.shift)
        source.agree("loss.perceptual_loss.scaling_layer.scale", lpips.scale)
        modules[LPIPS_FILE] = lpips
    logvar = source.weights.pop("loss.logvar", None)
    unused = _account_for(source)

    output = Path(output)
    vidtwin.save_pretrained(output)
    (output / CONFIG_FILE).write_text(OmegaConf.to_yaml(sections))
    for file, module in modules.items():
        save_module(module, output / file)
    if logvar is not None:
        save_tensors({"logvar": logvar.float().reshape(1)}, output / LOGVAR_FILE)
    return Conversion(written=sorted(output.iterdir()), unused=unused)


def _account_for(source: _Checkpoint) -> dict[str, str]:
    """The keys that are left, each with the known reason; ValueError for one without."""
    unused: dict[str, str] = {}
    for name in source.weights:
        reason = next((reason for pattern, reason in UNUSED.items() if re.fullmatch(pattern, name)), None)
        if reason is None:
            raise ValueError(f"{source.source}: key {name!r} is unknown; is this another model's checkpoint?")
        unused[name] = reason
    return unused
