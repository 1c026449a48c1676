"""What latents that are to be decoded are refused for: other tensors, damage, values without pixels, another model."""

from __future__ import annotations

import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import safetensors.torch
import torch

from data_pipeline.dataset.description import read_dataset
from data_pipeline.store.local import LocalStore
from launch.decode_latents import main
from model.vidtwin import VidTwin
from tests.trainer.latents import corpus
from trainer.latents.decode import decode_batch
from trainer.latents.named_latents import latents_of_file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dynamics": None},
            r"holds the tensors \['structure'\]; structure \[3, 4, 2, 2\] and dynamics \[2, f, 4\], or",
        ),
        ({"dynamics_w": (2, 4, 2), "dynamics_h": (2, 4, 2)}, r"holds the tensors .* are needed"),
        ({"structure": (3, 4, 2, 1)}, r"structure is \[3, 4, 2, 1\] of torch.float32; .*f = 2 to 4.* are needed"),
        ({"dynamics": (2, 5, 4)}, r"dynamics is \[2, 5, 4\] of"),
        ({"dynamics": (1, 2, 4, 4)}, r"dynamics is \[1, 2, 4, 4\] of"),
        ({"dynamics": ()}, r"dynamics is \[\] of"),
        ({"structure": torch.zeros(3, 4, 2, 2, dtype=torch.int32)}, r"structure is .* of torch.int32"),
    ],
)
def test_other_tensors_are_refused_with_those_that_are_expected(
    change: dict[str, object], message: str, network: VidTwin, tmp_path: Path
) -> None:
    shapes: dict[str, object] = {"structure": (3, 4, 2, 2), "dynamics": (2, 4, 4), **change}
    tensors = {name: torch.zeros(shape) if isinstance(shape, tuple) else shape for name, shape in shapes.items()}
    file = tmp_path / "made.safetensors"
    safetensors.torch.save_file({name: value for name, value in tensors.items() if value is not None}, file)  # type: ignore[misc]
    with pytest.raises(ValueError, match=rf"{file}.*{message}"):
        list(latents_of_file(str(file), network.config, Fraction(8)))


def test_a_file_that_is_damaged_and_values_without_pixels_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(model), "--fps", "8", "--output", str(tmp_path / "out"), "--latents"]
    file = tmp_path / "made.safetensors"
    file.write_bytes(b"junk" * 9)
    assert main([*words, str(file)]) == 2
    assert f"{file} is not a complete safetensors file" in capsys.readouterr().err
    header = json.dumps({"structure": {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    assert main([*words, str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is not a complete safetensors file" in line
    tensors = {"structure": torch.zeros(3, 4, 2, 2), "dynamics": torch.full((2, 4, 4), torch.nan)}
    safetensors.torch.save_file(tensors, file)
    assert main([*words, str(file)]) == 2
    assert f"{file}: dynamics has a value that is infinite or no number" in capsys.readouterr().err
    good = {"structure": torch.zeros(2, 3, 4, 2, 2), "dynamics": torch.zeros(2, 2, 4, 4)}
    safetensors.torch.save_file(good, tmp_path / "good.safetensors")
    good["structure"][1, 0, 0, 0, 0] = torch.inf
    safetensors.torch.save_file(good, file)
    assert main([*words, str(tmp_path / "good.safetensors"), str(file)]) == 2  # and the good ones are not begun
    assert f"{file} number 1: structure has a value that is infinite" in capsys.readouterr().err
    safetensors.torch.save_file({name: tensor[:0] for name, tensor in good.items()}, file)
    assert main([*words, str(file)]) == 2
    assert f"{file} holds the latents of no video" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "missing.safetensors")]) == 2
    assert "missing.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_values_that_fp32_or_the_decoder_cannot_hold_are_refused(network: VidTwin, tmp_path: Path) -> None:
    """1e300 is a number of fp64 alone, and the squares of 1e38 are none of fp32; no video is made of either."""
    file = tmp_path / "made.safetensors"
    dynamics = torch.zeros(1, 2, 4, 4)
    beyond = torch.full((1, 3, 4, 2, 2), 1e300, dtype=torch.float64)
    safetensors.torch.save_file({"structure": beyond, "dynamics": dynamics}, file)
    with pytest.raises(ValueError, match=rf"{file} number 0: structure has a value .* in fp32, which has no pixels"):
        list(latents_of_file(str(file), network.config, Fraction(8)))
    with pytest.raises(ValueError, match="structure has a value that is infinite or no number in fp32"):
        decode_batch(network, beyond, dynamics)
    with pytest.raises(ValueError, match=r"decoder gives pixels that are infinite .*: the latents reach 1e\+38"):
        decode_batch(network, torch.full((1, 3, 4, 2, 2), 1e38), dynamics)


def test_tensors_of_8_bits_are_decoded_and_types_that_torch_does_not_read_are_refused(
    network: VidTwin, tmp_path: Path
) -> None:
    """Every value of these types is one of fp32."""
    file = tmp_path / "made.safetensors"
    source = torch.Generator().manual_seed(0)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        structure = torch.randn(3, 4, 2, 2, generator=source).to(dtype)
        w, h = (torch.randn(2, 4, 2, generator=source).to(dtype) for _ in range(2))
        safetensors.torch.save_file({"structure": structure, "dynamics_w": w, "dynamics_h": h}, file)
        (found,) = latents_of_file(str(file), network.config, Fraction(8))
        assert torch.equal(found.structure, structure.float())
        assert torch.equal(found.dynamics, torch.cat([w.float(), h.float()], dim=-1))
        assert decode_batch(network, structure[None], found.dynamics[None].to(dtype)).shape == (1, 3, 4, 32, 32)
    safetensors.torch.save_file({"structure": torch.zeros(4, 4).to(torch.float8_e8m0fnu)}, file)
    with pytest.raises(ValueError, match=rf"{file} holds a tensor of the type 'F8_E8M0', which torch does not read"):
        list(latents_of_file(str(file), network.config, Fraction(8)))


def test_latents_of_another_model_are_refused_with_both_digests(
    latents: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = corpus.save_model(tmp_path / "other", seed=1)
    described = read_dataset(latents).latents
    assert described is not None
    words = ["--model", str(other), "--output", str(tmp_path / "out")]
    tensors = {"structure": torch.zeros(3, 4, 2, 2), "dynamics": torch.zeros(2, 4, 4)}
    safetensors.torch.save_file(tensors, tmp_path / "made.safetensors")
    file = ["--latents", str(tmp_path / "made.safetensors"), "--fps", "8"]
    for option, more in (("--latents", []), ("--statistics", file)):
        assert main([*words, *more, option, str(latents.root)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith(f"launch/decode_latents.py: {option} {latents.root} was encoded by the model whose")
        assert len(set(re.findall(r"[0-9a-f]{64}", error))) == 2
        assert described.weights in error
    assert not (tmp_path / "out").exists()


def test_a_damaged_sample_is_named_with_its_dataset_and_what_says_more(
    latents: LocalStore, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "latents"
    shutil.copytree(latents.root, damaged)
    shard = sorted((damaged / "shards").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:700] + b"?" + shard.read_bytes()[701:])
    assert main(["--model", str(model), "--latents", str(damaged), "--output", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launch/decode_latents.py: --latents {damaged}: ")
    assert f"launch/verify_shards.py --shards {damaged} says what else is damaged" in line
