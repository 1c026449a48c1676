"""Conversion of official checkpoints: every key accounted for, nothing else in a pickle is run, errors name the key."""

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from launch import convert_official
from model.config import DiscriminatorConfig, VidTwinConfig
from model.discriminator import build_discriminator
from model.lpips import LPIPS
from model.official import UNUSED, convert, discriminator_name, lpips_name, official_name
from model.vidtwin import VidTwin
from tests.model.official_weights import GOLDEN, Golden, load_golden, official_state_dict, write_official

# (position in torchvision's vgg16().features, slice of the official LPIPS, output channels, input channels)
VGG = [
    *((0, 1, 64, 3), (2, 1, 64, 64), (5, 2, 128, 64), (7, 2, 128, 128)),
    *((10, 3, 256, 128), (12, 3, 256, 256), (14, 3, 256, 256)),
    *((17, 4, 512, 256), (19, 4, 512, 512), (21, 4, 512, 512)),
    *((24, 5, 512, 512), (26, 5, 512, 512), (28, 5, 512, 512)),
]


def official_lpips() -> dict[str, Tensor]:
    """The LPIPS part of the released checkpoint, zeros for weights: names and shapes of the golden README."""
    prefix = "loss.perceptual_loss"
    state = {
        f"{prefix}.scaling_layer.shift": torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1),
        f"{prefix}.scaling_layer.scale": torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1),
    }
    for index, number, out, channels in VGG:
        state[f"{prefix}.net.slice{number}.{index}.weight"] = torch.zeros(out, channels, 3, 3)
        state[f"{prefix}.net.slice{number}.{index}.bias"] = torch.full((out,), float(index))
    for n, channels in enumerate((64, 128, 256, 512, 512)):
        state[f"{prefix}.lin{n}.model.1.weight"] = torch.full((1, channels, 1, 1), float(n))
    return state


@pytest.fixture(scope="module")
def golden() -> Golden:
    return load_golden("golden_a")


@pytest.fixture
def state(golden: Golden) -> dict[str, Tensor]:
    return official_state_dict(golden)


def test_every_key_of_the_released_checkpoint_is_mapped_or_unused() -> None:
    """The list of the released base checkpoint against the names of our modules, shapes included."""
    official = {
        name: shape for name, (shape, _) in json.loads((GOLDEN / "official_base_keys.json").read_text()).items()
    }
    official |= {name: list(value.shape) for name, value in official_lpips().items()}
    config = VidTwinConfig()
    config.structure.channels = 8
    with torch.device("meta"):
        vidtwin, discriminator, lpips = VidTwin(config), build_discriminator(DiscriminatorConfig()), LPIPS()
    mapped: dict[str, int] = {}
    for module, rename in (
        (vidtwin, official_name),
        (discriminator, lambda name: discriminator_name(name, 3)),
        (lpips, lpips_name),
    ):
        for name, value in module.state_dict().items():
            if name not in ("shift", "scale"):
                assert rename(name) not in mapped, "two of our weights from one of theirs"
                mapped[rename(name)] = value.numel()
    mapped["loss.logvar"] = 1
    assert mapped.keys() <= official.keys()
    for name, size in mapped.items():
        assert torch.Size(official[name]).numel() == size, name
    left = official.keys() - mapped.keys()

    assert all(any(re.fullmatch(pattern, name) for pattern in UNUSED) for name in left)
    assert len(left) == 3 + 2 + 4 + 2  # two layers never called, four position tables, two constants


def test_everything_in_a_full_checkpoint_is_written(tmp_path: Path, golden: Golden, state: dict[str, Tensor]) -> None:
    checkpoint, config = write_official(tmp_path, state | official_lpips(), golden.params)
    result = convert(checkpoint, config, tmp_path / "out")
    names = {file.name for file in result.written}
    assert names == {
        "config.yaml",
        "model.safetensors",
        "discriminator.safetensors",
        "lpips.safetensors",
        "logvar.safetensors",
    }
    written = OmegaConf.load(tmp_path / "out" / "config.yaml")
    assert (written.model.structure.channels, written.model.patch_size, written.discriminator.kind) == (4, 8, "2d")
    assert load_file(tmp_path / "out" / "logvar.safetensors")["logvar"].shape == (1,)
    lpips = LPIPS.from_files(tmp_path / "out" / "lpips.safetensors")
    assert [head.weight.mean().item() for head in lpips.heads] == [0, 1, 2, 3, 4]
    assert lpips.features["28"].bias.mean().item() == 28
    model = VidTwin.from_pretrained(tmp_path / "out")
    theirs = state["encoder.x_embedder.proj.weight"][5, 1, 0, 2, 3]  # feature 5, green, row 2, column 3
    assert model.patch_in.weight[5, (2 * 8 + 3) * 3 + 1] == theirs


def test_a_full_disk_leaves_no_half_of_a_model_and_the_same_command_can_be_given_again(
    tmp_path: Path,
    golden: Golden,
    state: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint, config = write_official(tmp_path, state, golden.params)
    words = ["--checkpoint", str(checkpoint), "--config", str(config), "--output", str(tmp_path / "out")]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("model.official.save_tensors", full)  # the last file that is written
        assert convert_official.main(words) == 1
    assert "no space left" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["official.ckpt", "official.yaml"]
    assert convert_official.main(words) == 0
    assert f"wrote {tmp_path / 'out' / 'logvar.safetensors'}\n" in capsys.readouterr().out
    assert VidTwin.from_pretrained(tmp_path / "out").config.patch_size == 8


def test_a_bare_state_dict_of_the_autoencoder_alone(tmp_path: Path, golden: Golden, state: dict[str, Tensor]) -> None:
    _, config = write_official(tmp_path, {}, golden.params)
    torch.save({name: value for name, value in state.items() if not name.startswith("loss.")}, tmp_path / "bare.ckpt")
    result = convert(tmp_path / "bare.ckpt", config, tmp_path / "out")
    assert {file.name for file in result.written} == {"config.yaml", "model.safetensors"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.blocks.7.attn.qkv.weight": torch.zeros(1)},
            r"'encoder\.blocks\.7\.attn\.qkv\.weight' is unknown",
        ),
        ({"motion_head.weight": None}, r"key 'motion_head\.weight' is missing"),
        ({"decoder.pos_embed": None}, r"key 'decoder\.pos_embed' is missing"),
        ({"decoder.pos_embed": torch.zeros(1, 36, 48)}, r"key 'decoder\.pos_embed' differs"),
        ({"conv_in.bias": torch.zeros(3)}, r"key 'conv_in\.bias' has shape \[3\].*needs \[16\]"),
        ({"loss.discriminator.main.3.running_var": None}, r"main\.3\.running_var' is missing"),
        ({"conv_in.bias": "text"}, r"entry 'conv_in\.bias' is a str, not a tensor"),
    ],
)
def test_a_key_that_does_not_fit_is_named(
    tmp_path: Path, golden: Golden, state: dict[str, Tensor], change: dict[str, Any], message: str
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    checkpoint, config = write_official(tmp_path, changed, golden.params)
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, config, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Payload:
    """Unpickling it would create a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.victim,)


def test_nothing_in_a_pickle_is_run(
    tmp_path: Path, golden: Golden, state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, config = write_official(tmp_path, state, golden.params)
    victim = tmp_path / "victim"
    for name, extra in (("code", Payload(victim)), ("omegaconf", OmegaConf.create({"a": 1}))):
        torch.save({"state_dict": state, "hyper_parameters": extra}, checkpoint)
        words = ["--checkpoint", str(checkpoint), "--config", str(config), "--output", str(tmp_path / "out")]
        assert convert_official.main(words) == 2, name
        message = capsys.readouterr().err
        assert "holds more than tensors" in message
        assert "weights.ckpt" in message
    assert not victim.exists()


def test_a_damaged_file_is_named(tmp_path: Path, golden: Golden, state: dict[str, Tensor]) -> None:
    checkpoint, config = write_official(tmp_path, state, golden.params)
    whole = checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        checkpoint.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"official\.ckpt"):
            convert(checkpoint, config, tmp_path / "out")


def _changed(params: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(params))
    *parents, last = path.split(".")
    section = copy
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return copy


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("encoder_config.params.no_temporal", True, r"encoder_config\.params\.no_temporal is supported only as False"),
        ("encoder_config.params.depht", 2, r"encoder_config\.params\.depht is unknown"),
        ("encoder_config.params.depth", None, r"encoder_config\.params\.depth is missing"),
        ("decoder_config.params.depth", 3, r"encoder and decoder differ in depth"),
        ("encoder_config.params.patch_size", [2, 8, 8], r"patches of one frame"),
        ("shuffle_content", True, r"shuffle_content is supported only as False"),
        ("new_argument", 1, r"model\.params\.new_argument is unknown"),
        ("encoder_config.params.num_heads", 5, r"differ in heads"),
        ("encoder_config", [1], r"model\.params\.encoder_config\.params is missing or not a mapping"),
        ("encoder_config.params.input_size", 16, r"input_size=16 must be a list of three whole numbers"),
        ("encoder_config.params.input_size", [16, 224], r"input_size=\[16, 224\] must be a list of three"),
        ("encoder_config.params.hidden_size", 48.0, r"hidden_size=48\.0 must be a whole number"),
        ("encoder_config.params.temporal_casual", "yes", r"temporal_casual='yes' must be true or false"),
        ("expect_ch", "8", r"model\.params\.expect_ch='8' must be a whole number"),
        ("loss_config.params.disc_num_layers", 10**7, r"disc_num_layers=10000000 is more than 12"),
    ],
)
def test_a_yaml_that_cannot_be_built_names_the_argument(
    tmp_path: Path, golden: Golden, state: dict[str, Tensor], path: str, value: Any, message: str
) -> None:
    checkpoint, config = write_official(tmp_path, state, _changed(golden.params, path, value))
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, config, tmp_path / "out")
