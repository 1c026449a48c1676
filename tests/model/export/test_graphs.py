"""Graphs for torch and for ONNX: what they compute in a process that has no code of the model.

The truth is the model itself in fp64. fp32 kernels of another runtime may be as far from that as rounding explains
(tests/tools/rounding.py).
"""

from __future__ import annotations

import copy
import errno
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import VidTwinConfig
from model.export.formats import Format
from model.export.graphs import (
    INPUTS,
    MOST_CLIPS,
    OPSET,
    OUTPUTS,
    DecoderGraph,
    EncoderGraph,
    RememberingFile,
    resized,
    write_onnx,
    write_torch_export,
)
from model.export.write import write
from model.network import Latents, VidTwinNetwork
from model.vidtwin import VidTwin
from tests.model.export.elsewhere import run_elsewhere, snippets
from tests.model.tiny_vidtwin import tiny
from tests.tools.file_limit import file_limit
from tests.tools.rounding import Moved, Results, assert_within, with_bounds

BATCHES = (1, 3)
pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings("ignore"),  # torch.export and torch.onnx warn of their own deprecated parts
]

TORCH = f"""
import torch
halves = {{name: torch.export.load(f"out/{{name}}.pt2").module() for name in ("encoder", "decoder")}}
OUTPUTS = {OUTPUTS!r}
for batch in {BATCHES}:
    given, found = torch.load(f"inputs-{{batch}}.pt"), {{}}
    with torch.no_grad():
        found |= zip(OUTPUTS["encoder"], halves["encoder"](given["clips"]))
        found["video"] = halves["decoder"](given["structure"], given["dynamics"])
    torch.save(found, f"found-{{batch}}.pt")
video = given["clips"]
torch.set_grad_enabled(False)
"""
ONNX = f"""
import numpy as np, onnxruntime
halves = {{name: onnxruntime.InferenceSession(f"out/{{name}}.onnx") for name in ("encoder", "decoder")}}
OUTPUTS = {OUTPUTS!r}
for batch in {BATCHES}:
    given = dict(np.load(f"inputs-{{batch}}.npz"))
    found = dict(zip(OUTPUTS["encoder"], halves["encoder"].run(OUTPUTS["encoder"], {{"video": given["clips"]}})))
    latents = {{name: given[name] for name in ("structure", "dynamics")}}
    found["video"] = halves["decoder"].run(OUTPUTS["decoder"], latents)[0]
    np.savez(f"found-{{batch}}.npz", **found)
video = given["clips"]
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
"""


def inputs_for(network: VidTwinNetwork, batch: int) -> dict[str, Tensor]:
    """Clips for the encoder and latents for the decoder, fp32."""
    config, source = network.config, torch.Generator().manual_seed(batch)
    clips = torch.rand(batch, 3, config.frames, config.image_size, config.image_size, generator=source) * 2 - 1
    structure = torch.randn(batch, *config.structure_shape, generator=source)
    return {
        "clips": clips,
        "structure": structure,
        "dynamics": torch.randn(batch, *config.dynamics_shape, generator=source),
    }


def exact_results(network: VidTwinNetwork, inputs: dict[str, Tensor]) -> Callable[[Moved], Results]:
    """What the model gives in fp64, as `with_bounds` asks for it."""

    @torch.no_grad()
    def compute(moved: Moved) -> Results:
        exact = moved.weights(copy.deepcopy(network))
        assert isinstance(exact, VidTwinNetwork)
        clips, structure, dynamics = (moved(inputs[name]) for name in ("clips", "structure", "dynamics"))
        moments = [moment for part in exact.posteriors(clips) for moment in (part.mean, part.logvar)]
        return dict(zip(OUTPUTS["encoder"], moments, strict=True)) | {
            "video": exact.decode(Latents(structure, dynamics))
        }

    return compute


def check_elsewhere(vidtwin: VidTwin, folder: Path, form: Format, frames: int | None = None, seeds: int = 3) -> None:
    """Export, compute in another process for batches of 1 and 3, and compare with the model; run the card's lines.

    Args:
        seeds: how many times weights and inputs are moved, in each of two ways, to find the bounds.
    """
    (folder / "out").mkdir()
    write(vidtwin, folder / "out", form, frames)
    network = resized(vidtwin, frames)
    for batch in BATCHES:
        inputs = inputs_for(network, batch)
        if form is Format.onnx:
            np.savez(folder / f"inputs-{batch}.npz", **{name: value.numpy() for name, value in inputs.items()})
        else:
            torch.save(inputs, folder / f"inputs-{batch}.pt")
    lines = snippets(folder / "out")
    assert len(lines) == 1
    shape = (BATCHES[-1], 3, network.config.frames, network.config.image_size, network.config.image_size)
    script = ONNX if form is Format.onnx else TORCH
    run_elsewhere(folder, f"{script}\n{lines[0]}\nassert tuple(video.shape) == {shape}\n")
    for batch in BATCHES:
        if form is Format.onnx:
            found = {name: torch.from_numpy(value) for name, value in np.load(folder / f"found-{batch}.npz").items()}
        else:
            found = torch.load(folder / f"found-{batch}.pt")
        assert {value.dtype for value in found.values()} == {torch.float32}
        exact, bounds = with_bounds(exact_results(network, inputs_for(network, batch)), range(seeds))
        assert_within(found, exact, bounds)
        assert max(float(value.std()) for value in exact.values()) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("form", [Format.torch_export, Format.onnx])
def test_another_process_without_this_project_computes_the_same(form: Format, tmp_path: Path) -> None:
    if form is Format.onnx:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    check_elsewhere(tiny().eval(), tmp_path, form, seeds=1)


@pytest.mark.slow
def test_a_graph_of_fewer_frames_and_of_attention_to_all_frames(tmp_path: Path) -> None:
    vidtwin = tiny(causal=False, min_frames=2, dynamics=replace(tiny().config.dynamics, downsamplings=0)).eval()
    check_elsewhere(vidtwin, tmp_path, Format.torch_export, frames=3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", [Format.torch_export, Format.onnx])
def test_the_base_model_on_clips_of_two_frames(form: Format, tmp_path: Path) -> None:
    """All its layers at their widths; its own 16 frames would take fp64 a quarter of an hour."""
    if form is Format.onnx:
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    vidtwin = VidTwin(VidTwinConfig()).eval()
    with torch.no_grad():
        for block in (*vidtwin.encoder.blocks, *vidtwin.decoder.blocks):
            torch.nn.init.xavier_uniform_(block.temporal.out.weight)  # zero in a fresh model
    check_elsewhere(vidtwin, tmp_path, form, frames=2, seeds=1)


@pytest.mark.slow
def test_a_program_takes_batches_up_to_its_bound(tmp_path: Path) -> None:
    network = tiny().eval()
    write_torch_export(network, tmp_path)
    decoder = torch.export.load(tmp_path / "decoder.pt2").module()
    given = inputs_for(network, MOST_CLIPS + 1)
    most = [given[name][:MOST_CLIPS] for name in INPUTS["decoder"]]
    torch.testing.assert_close(decoder(*most), network.decode(Latents(*most)))
    with pytest.raises((AssertionError, RuntimeError), match=str(MOST_CLIPS)):
        decoder(*(given[name] for name in INPUTS["decoder"]))


@torch.no_grad()
def test_a_network_for_fewer_frames_is_the_model_on_shorter_clips() -> None:
    vidtwin = tiny(min_frames=2).double().eval()
    shorter = resized(vidtwin, 3)
    clips = inputs_for(vidtwin, 2)["clips"][:, :, :3].double()
    latents = vidtwin.encode(clips)
    for ours, wanted in zip(shorter.encode(clips), latents, strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-9, rtol=0)
    torch.testing.assert_close(shorter.decode(latents), vidtwin.decode(latents), atol=1e-9, rtol=0)
    assert resized(vidtwin) is vidtwin
    assert resized(vidtwin, image_size=56).config.position_grid == 5
    with pytest.raises(ValueError, match=r"model\.patch_size=8 does not divide model\.image_size=44"):
        resized(vidtwin, image_size=44)


def test_each_half_has_its_own_weights_and_no_others() -> None:
    network = tiny()
    halves = [{id(value) for value in graph.parameters()} for graph in (EncoderGraph(network), DecoderGraph(network))]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {id(value) for value in network.parameters()}


@pytest.mark.slow
def test_files_name_no_folder_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    network = tiny(depth=1).eval()
    write_torch_export(network, tmp_path)
    write_onnx(network, tmp_path)
    written = [file.read_bytes() for file in tmp_path.glob("*.onnx")]
    for file in tmp_path.glob("*.pt2"):
        with zipfile.ZipFile(file) as archive:
            written += [archive.read(name) for name in archive.namelist()]
    assert len(written) > 4
    for folder in (Path(__file__).parents[3], Path(torch.__file__).parent):
        assert not any(str(folder).encode() in content for content in written)
    opsets = {
        one.domain: one.version for one in onnx.load(tmp_path / "encoder.onnx", load_external_data=False).opset_import
    }
    assert opsets[""] == OPSET


def test_a_file_of_torch_that_does_not_fit_on_the_disk_says_so(tmp_path: Path) -> None:
    """torch writes archives by one class, which makes an error without a number of what the system says."""
    file = tmp_path / "encoder.pt2"
    with file_limit(4096), pytest.raises(OSError, match="File too large") as told, RememberingFile(file) as opened:
        torch.save(torch.zeros(10_000), opened)
    assert (told.value.errno, told.value.filename) == (errno.EFBIG, str(file))
    with RememberingFile(file) as opened:
        torch.save(torch.arange(10_000), opened)
    assert torch.equal(torch.load(file), torch.arange(10_000))
