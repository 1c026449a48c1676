"""Model directories of a stranger: a configuration is data and can be built; weights are tensors, and fit it."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.config import read_config
from model.dit import DiT
from model.dit_config import DiTConfig, DiTDescription, LatentSpace
from model.vidtwin import VidTwin
from model.weights import load_pickle
from tests.attacks.hostile import Hostile
from tests.data_pipeline.outside.test_documents import BOMB
from tests.trainer.cases import tiny_recipe

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's directory; not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    VidTwin(tiny_recipe().model).save_pretrained(folder)
    return folder


def number(key: str, value: object) -> Callable[[str], str]:
    return lambda text: re.sub(rf"(?m)^(  {key}: ).*$", rf"\g<1>{value}", text, count=1)


CONFIGS: dict[str, tuple[Callable[[str], str], str]] = {
    "environment": (number("frames", "${oc.env:AWS_SECRET_ACCESS_KEY}"), "frames holds"),
    "interpolation": (number("frames", "${model.depth}"), "frames holds"),
    "depth 10^7": (number("depth", 10**7), r"model\.depth=10000000 is more than 512"),
    "width 2^40": (number("width", 2**40), r"model\.width=1099511627776 is more than"),
    "image 2^31": (number("image_size", 2**31), r"model\.image_size"),
    "digits": (number("depth", "9" * 5000), "."),
    "width by depth": (
        lambda text: number("width", 32768)(number("depth", 512)(number("heads", 8)(text))),
        "no machine can build",
    ),
    "positions of 2^28 patches": (
        lambda text: number("image_size", 16384)(number("patch_size", 1)(text)),
        r"model\.patch_size=1 has 268435456 patches, whose positions have more than 1e\+09 numbers",
    ),
    "resamplings of 2^36 numbers": (
        lambda text: number("frames", 4096)(number("min_frames", 1)(text)),
        r"model\.min_frames=1 with model\.frames=4096 has resamplings",
    ),
    "not a number": (number("depth", ".nan"), "depth"),
    "infinite": (number("depth", ".inf"), "depth"),
    "negative": (number("frames", -8), r"model\.frames=-8"),
    "no heads": (number("heads", 0), r"model\.heads=0"),
    "bomb": (lambda text: BOMB + text, "alias"),
    "deep": (lambda text: "a: " + "[" * 5000 + "]" * 5000 + "\n" + text, "line 1"),
    "tag": (lambda text: "a: !!python/object/apply:os.system [id]\n" + text, "tag"),
    "unknown": (lambda text: text.replace("model:", 'model:\n  "\\e]0;x\\a": 1', 1), "model"),
    "long": (lambda text: text + "#" * 2**19, "more than"),
    "a list": (lambda text: "- 1\n", "no section `model`"),
    "a text for a section": (lambda text: "model: 5\n", "no section `model`"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_no_machine_can_build_is_refused(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "A-SECRET")
    change, message = CONFIGS[name]
    file = tmp_path / "config.yaml"
    before = (model / "config.yaml").read_text()
    file.write_text(change(before))
    assert file.read_text() != before
    with pytest.raises(ValueError, match=message) as refused:
        read_config(file)
    assert "A-SECRET" not in str(refused.value)
    assert str(file) in str(refused.value)


def encoded(header: dict[str, object], rest: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + rest


def test_weights_that_lie_are_refused(model: Path, tmp_path: Path) -> None:
    raw = (model / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header, rest = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    first, second = [name for name in header if name != "__metadata__"][:2]
    hostile = {
        "header of 2^62": struct.pack("<Q", 2**62) + raw[8:],
        "offset of 2^50": encoded(header | {first: header[first] | {"data_offsets": [0, 2**50]}}, rest),
        "shape of 2^80": encoded(header | {first: header[first] | {"shape": [2**40, 2**40]}}, rest),
        "negative shape": encoded(header | {first: header[first] | {"shape": [-1]}}, rest),
        "overlapping": encoded(
            header | {second: header[second] | {"data_offsets": header[first]["data_offsets"]}}, rest
        ),
        "cut": raw[:-9],
        "empty": b"",
        "a pickle": b"\x80\x04cos\nsystem\n(S'id'\ntR.",
    }
    (tmp_path / "config.yaml").write_bytes((model / "config.yaml").read_bytes())
    for name, content in hostile.items():
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors") as refused:
            VidTwin.from_pretrained(tmp_path)
        assert "\n" not in str(refused.value), name


def test_a_configuration_larger_than_its_weights_takes_no_memory(model: Path, tmp_path: Path) -> None:
    """Its weights would take some 60 GB: they are compared by shape before any are made."""
    text = (model / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(number("width", 8192)(number("depth", 12)(text)))
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="weight"):
        VidTwin.from_pretrained(tmp_path)


def test_weights_that_are_no_file_are_refused_at_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes((model / "config.yaml").read_bytes())
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(OSError, match=r"not found|not a regular file"):
        VidTwin.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="not a regular file"):
        load_pickle(tmp_path / "model.safetensors")


@pytest.mark.parametrize("new", [True, False])
def test_no_pickle_of_weights_runs(new: bool, tmp_path: Path) -> None:
    file, mark = tmp_path / "lpips.ckpt", tmp_path / "CODE-WAS-RUN"
    state = {"state_dict": {"a": torch.zeros(1)}, "hyper": Hostile(mark)}
    torch.save(state, file, _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"lpips\.ckpt holds more than tensors") as refused:
        load_pickle(file)
    assert "\n" not in str(refused.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    "text", ['{"dit": {"width": 1e999}}', "[" * 100_000, '{"dit": 5}', '{"dit": {"depth": 99999999}}']
)
def test_a_description_of_a_dit_that_lies_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        DiTDescription.read(tmp_path / "config.json")


LATENTS = {"structure_shape": [4, 4, 2, 2], "dynamics_shape": [2, 4, 4]}


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("dit", {"width": 24.0}, "width=24.0 must be a whole number"),
        ("dit", {"depth": True}, "depth=True must be a whole number"),
        ("dit", {"qk_norm": "no"}, "qk_norm='no' must be true or false"),
        ("dit", {"structure_patch": [2.0, 1, 1]}, r"structure_patch=\(2.0, 1, 1\) must be a list, each of it a whole"),
        ("latents", {"classes": [1, 2]}, r"classes=\(1, 2\) must be a list, each of it a text"),
        ("latents", {"autoencoder": 5}, "autoencoder=5 must be a text"),
        ("process", {"steps": 2.5}, "steps=2.5 must be a whole number"),
        ("process", {"shift": "1"}, "shift='1' must be a number"),
        ("dit", {"width": 32768, "depth": 512}, "width=32768 with depth=512 has more than 1e\\+12 weights"),
        ("latents", {"structure_shape": [4, 10**6, 10**6, 10**6]}, "patches, whose positions have more than 1e"),
    ],
)
def test_a_description_of_a_dit_that_cannot_be_built_names_the_key(
    section: str, change: dict[str, object], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    DiTDescription(dit=DiTConfig(width=24, depth=2, heads=2), latents=LatentSpace(**LATENTS)).write(file)  # type: ignore[arg-type]
    document = json.loads(file.read_text())
    assert DiTDescription.read(file).dit.width == 24
    file.write_text(json.dumps(document | {section: document[section] | change}))
    with pytest.raises(ValueError, match=message):
        DiTDescription.read(file)


def test_no_memory_is_taken_for_a_dit_whose_weights_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = LatentSpace(**LATENTS)  # type: ignore[arg-type]
    DiT(DiTConfig(width=24, depth=2, heads=2), space).save_pretrained(tmp_path)
    DiTDescription(dit=DiTConfig(width=48, depth=2, heads=2), latents=space).write(tmp_path / "config.json")
    built: list[str] = []
    monkeypatch.setattr(DiT, "reset_parameters", lambda self: built.append(self.positions.device.type))
    with pytest.raises(ValueError, match=r"weight 'structure_in\.weight' has shape"):
        DiT.from_pretrained(tmp_path)
    assert built == ["meta"]
