"""The YAML of a released VidTwin, read into this project's configuration.

It names a class and its arguments (`model.target`, `model.params...`). Every argument is either translated, or
known to concern training only, or refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.outside.documents import read_yaml
from model.config import DiscriminatorConfig, DynamicsConfig, StructureConfig, VidTwinConfig, check_buildable

_MODEL = "VidAutoEncoderQformerCompactSymVidVAE"
MOST_LAYERS = 12
"""Of a discriminator: with more, it would need frames of more than 16384 pixels, the largest of a model."""
# Arguments that say how the released code trains or reads data, not what function the network is.
_TRAINING_ARGUMENTS = frozenset(
    [
        *("input_key", "monitor", "mode", "verbose", "compile_model", "ckpt_path", "ckpt_path2", "ignore_keys"),
        *("trainable_ae_params", "ae_optimizer_args", "trainable_disc_params", "disc_optimizer_args", "lr_g_factor"),
        *("optimizer_config", "weight_decay", "lr_scheduler_config", "lr_scheduler_config_g", "lr_scheduler_config_d"),
        *("regularizer_config", "temporal_down_dim", "partial_content_motion", "use_ema", "ema_decay"),
    ]
)
_TRANSFORMER_IGNORED = frozenset(
    ["enable_flashattn", "enable_layernorm_kernel", "freeze", "no_temporal_pos_emb", "group_size"]
)
# Arguments with the only value that we (and the released checkpoint) have.
_TRANSFORMER_FIXED = {
    "in_channels": 3,
    "mlp_ratio": 4.0,
    "pred_sigma": False,
    "drop_path": 0.0,
    "space_scale": 1.0,
    "time_scale": 1.0,
    "no_temporal": False,
    "temporal_group": False,
}


class _Arguments:
    """A section of the YAML from which every entry must be taken, so that nothing is overlooked."""

    def __init__(self, source: str, path: str, entries: Any) -> None:
        if not isinstance(entries, Mapping):
            raise ValueError(f"{source}: {path} is missing or not a mapping")
        self.source, self.path, self.entries = source, path, dict(entries)

    def take(self, name: str, default: Any = ...) -> Any:
        """The value of an argument; the default is the released constructor's."""
        if name not in self.entries and default is ...:
            raise ValueError(f"{self.source}: {self.path}.{name} is missing")
        return self.entries.pop(name, default)

    def number(self, name: str, default: Any = ...) -> int:
        """The value of an argument that is a whole number."""
        value = self.take(name, default)
        if type(value) is not int:
            raise ValueError(f"{self.source}: {self.path}.{name}={value!r} must be a whole number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """The value of an argument that is true or false."""
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.source}: {self.path}.{name}={value!r} must be true or false")
        return value

    def sizes(self, name: str) -> tuple[int, int, int]:
        """The value of an argument that is a list of sizes along time, height and width."""
        value = self.take(name)
        if not isinstance(value, list) or len(value) != 3 or any(type(size) is not int for size in value):
            raise ValueError(f"{self.source}: {self.path}.{name}={value!r} must be a list of three whole numbers")
        time, height, width = value
        return time, height, width

    def section(self, name: str) -> "_Arguments":
        """The `params` of a nested class."""
        nested, path = self.take(name, {}), f"{self.path}.{name}"
        return _Arguments(self.source, f"{path}.params", nested.get("params") if isinstance(nested, Mapping) else None)

    def only(self, fixed: Mapping[str, Any]) -> None:
        """Refuse arguments whose other values are not built here."""
        for name, value in fixed.items():
            if self.take(name, value) != value:
                raise ValueError(f"{self.source}: {self.path}.{name} is supported only as {value}")

    def done(self, ignored: frozenset[str] = frozenset()) -> None:
        """Refuse what nobody took."""
        for name in sorted(self.entries.keys() - ignored):
            raise ValueError(f"{self.source}: {self.path}.{name} is unknown")


def _transformer(section: _Arguments) -> dict[str, Any]:
    frames, height, width = section.sizes("input_size")
    time, rows, columns = section.sizes("patch_size")
    if height != width or rows != columns or time != 1:
        raise ValueError(
            f"{section.source}: {section.path} needs square frames and square patches of one frame; it has input_size "
            f"{[frames, height, width]}, patch_size {[time, rows, columns]}"
        )
    arguments = {
        "frames": frames,
        "image_size": height,
        "patch_size": rows,
        "width": section.number("hidden_size"),
        "depth": section.number("depth"),
        "heads": section.number("num_heads"),
        "causal": section.flag("temporal_casual", True),
    }
    section.only(_TRANSFORMER_FIXED)
    section.done(_TRANSFORMER_IGNORED)
    return arguments


def _vidtwin_config(params: _Arguments) -> VidTwinConfig:
    encoder, decoder = _transformer(params.section("encoder_config")), _transformer(params.section("decoder_config"))
    for name in encoder:
        if encoder[name] != decoder[name]:
            raise ValueError(
                f"{params.source}: encoder and decoder differ in {name} ({encoder[name]} and {decoder[name]}); "
                "only equal ones are supported"
            )
    qformer = params.section("temporal_qformer_config")
    if qformer.take("encoder_hidden_size", 768) != encoder["width"]:
        raise ValueError(f"{params.source}: {qformer.path}.encoder_hidden_size differs from the encoder's hidden_size")
    structure = StructureConfig(
        queries=qformer.number("num_query_tokens", 3),
        query_width=qformer.number("query_hidden_size", 64),
        query_layers=qformer.number("num_hidden_layers", 6),
        query_hidden=qformer.number("intermediate_size", 768),
        query_heads=qformer.number("num_attention_heads", 8),
        channels=params.number("expect_ch", 4),
        downsamplings=params.number("cont_num_blocks", 2),
        conv_width=params.number("init_ch", 128),
    )
    qformer.done()
    halved, motion_blocks = params.flag("downsample_motion", False), params.number("motion_num_blocks", 2)
    if halved and motion_blocks < 1:
        raise ValueError(f"{params.source}: {params.path}.downsample_motion needs motion_num_blocks of at least 1")
    dynamics = DynamicsConfig(channels=params.number("d_dim", 16), downsamplings=motion_blocks if halved else 0)
    return VidTwinConfig(**encoder, structure=structure, dynamics=dynamics)


def read_official_config(file: str | Path) -> tuple[VidTwinConfig, DiscriminatorConfig]:
    """The architecture an official YAML describes (`model.target`, `model.params...`).

    Raises:
        ValueError: an argument that is missing, unknown, or has a value this project does not build, naming it.
    """
    plain = read_yaml(file)
    model = plain.get("model") if isinstance(plain, dict) else None
    if not isinstance(model, dict):
        raise ValueError(f"{file} has no section `model`; give the YAML that came with the checkpoint")
    target = str(model.get("target", _MODEL))
    if target.rsplit(".", 1)[-1] != _MODEL:
        raise ValueError(f"{file}: model.target is {target}, but only {_MODEL} is supported")
    params = _Arguments(str(file), "model.params", model.get("params"))
    vidtwin = _vidtwin_config(params)
    params.only({"shuffle_content": False})
    loss = params.section("loss_config")
    discriminator = DiscriminatorConfig(
        kind=loss.take("disc_type", "3d"), layers=loss.number("disc_num_layers", 3), norm="batch"
    )
    if discriminator.layers > MOST_LAYERS:
        raise ValueError(
            f"{file}: {loss.path}.disc_num_layers={discriminator.layers} is more than {MOST_LAYERS}; correct it"
        )
    loss.only({"disc_in_channels": 3})
    params.done(_TRAINING_ARGUMENTS)
    check_buildable(vidtwin, str(file))
    return vidtwin, discriminator
