"""Encoder and decoder as graphs that need none of this code: `torch.export` programs, and ONNX.

A graph is of one number of frames and one image size; the number of clips is free. B batch, T frames, H = W pixels.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import COLOURS
from model.network import Latents, VidTwinNetwork
from model.resize import resize_weights

MOST_CLIPS = 128
"""The largest batch of a `torch.export` program. The widest tensor of the base model, inside the MLPs, then has
128 * 3136 * 3072 = 1.2e9 numbers; kernels that count with 32 bits end at 2.1e9."""
OPSET = 20
"""The ONNX opset: the first that has GELU as one operator. onnxruntime 1.17 was the first release that ran it."""
INPUTS = {"encoder": ("video",), "decoder": ("structure", "dynamics")}
OUTPUTS = {
    "encoder": tuple(
        f"{latent}_{moment}" for latent in ("structure", "dynamics_w", "dynamics_h") for moment in ("mean", "logvar")
    ),
    "decoder": ("video",),
}
ENCODING = ("patch_in", "encoder", "structure_encoder", "dynamics_encoder")
DECODING = ("structure_decoder", "dynamics_decoder", "decoder", "pixels")


class EncoderGraph(nn.Module):
    """A video's posteriors as six tensors, in the order of `OUTPUTS`."""

    def __init__(self, network: VidTwinNetwork) -> None:
        super().__init__()
        self.network = _half(network, keep=ENCODING, drop=DECODING)

    def forward(self, video: Tensor) -> tuple[Tensor, ...]:
        """[B, 3, T, H, W] in [-1, 1] -> mean and log-variance of structure, dynamics_w and dynamics_h."""
        return tuple(moment for part in self.network.posteriors(video) for moment in (part.mean, part.logvar))


class DecoderGraph(nn.Module):
    """The video of latents."""

    def __init__(self, network: VidTwinNetwork) -> None:
        super().__init__()
        self.network = _half(network, keep=DECODING, drop=ENCODING)

    def forward(self, structure: Tensor, dynamics: Tensor) -> Tensor:
        """Latents as in `model.network.Latents` -> [B, 3, T, H, W], about in [-1, 1] and not clamped to it."""
        return self.network.decode(Latents(structure, dynamics))


def _half(network: VidTwinNetwork, keep: tuple[str, ...], drop: tuple[str, ...]) -> VidTwinNetwork:
    """A network that shares the parts `keep` with `network` and lacks the parts `drop`, so a graph has no idle weights.

    The parts that are replaced are made on the meta device, where they take no memory.
    """
    with torch.device("meta"):
        half = VidTwinNetwork(network.config)
    for name in drop:
        delattr(half, name)
    for name in keep:
        setattr(half, name, getattr(network, name))
    return half.eval()


def resized(network: VidTwinNetwork, frames: int | None = None, image_size: int | None = None) -> VidTwinNetwork:
    """The network for clips of another size; `network` itself where the size is its own.

    Its weights are resampled as `init_from` resamples them (model/resize.py). With `config.min_frames`, the result for
    fewer frames computes what `network` computes for clips of that length.

    Args:
        frames: T; None = that of the configuration.
        image_size: H = W in pixels; None = that of the configuration.
    Raises:
        ValueError: the patches do not divide the image, or the grid is too small; the message names the key.
    """
    config = network.config
    frames, image_size = frames or config.frames, image_size or config.image_size
    if (frames, image_size) == (config.frames, config.image_size):
        return network
    grid = config.position_grid or config.grid
    wanted = replace(config, frames=frames, min_frames=0, image_size=image_size, position_grid=grid)
    other = VidTwinNetwork(wanted).to(network.patch_in.weight)
    other.load_state_dict(resize_weights(network.state_dict(), other.state_dict()))
    return other.eval()


def _example(network: VidTwinNetwork, name: str) -> tuple[Tensor, ...]:
    """Inputs of the right shape, with 2 clips: sizes 0 and 1 would be taken for constants."""
    config = network.config
    if name == "encoder":
        return (torch.zeros(2, COLOURS, config.frames, config.image_size, config.image_size),)
    return torch.zeros(2, *config.structure_shape), torch.zeros(2, *config.dynamics_shape)


def _graphs(network: VidTwinNetwork) -> dict[str, nn.Module]:
    assert all(parameter.dtype is torch.float32 for parameter in network.parameters()), "exported weights are fp32"
    return {"encoder": EncoderGraph(network).eval(), "decoder": DecoderGraph(network).eval()}


def write_torch_export(network: VidTwinNetwork, folder: Path) -> None:
    """Write `encoder.pt2` and `decoder.pt2` for `torch.export.load`, for batches of 1 to `MOST_CLIPS` clips.

    Args:
        network: fp32, on the host.
    """
    batch = torch.export.Dim("batch", min=1, max=MOST_CLIPS)
    for name, graph in _graphs(network).items():
        shapes = {argument: {0: batch} for argument in INPUTS[name]}
        with torch.no_grad():
            program = torch.export.export(graph, _example(network, name), dynamic_shapes=shapes)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # it names files of this machine
        with RememberingFile(folder / f"{name}.pt2") as file:
            torch.export.save(program, file)


class RememberingFile(io.BufferedWriter):
    """A new file whose first error of the system comes out of the block, whatever torch has made of it.

    Args:
        file: to write.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(io.FileIO(file, "wb"))
        self._file = file
        self._failed: OSError | None = None

    def write(self, data: Any) -> int:
        """As that of the base class, but its first error is kept."""
        try:
            return super().write(data)
        except OSError as error:
            self._failed = self._failed or error
            raise

    def __exit__(self, *raised: Any) -> None:
        """Close the file. Raises: OSError, with the name of the file, where a write or the last flush has failed."""
        try:
            super().__exit__(*raised)
        except OSError as error:
            self._failed = self._failed or error
        if self._failed is not None:
            raise OSError(self._failed.errno, self._failed.strerror, str(self._file)) from self._failed


def write_onnx(network: VidTwinNetwork, folder: Path) -> None:
    """Write `encoder.onnx` and `decoder.onnx` of opset `OPSET` for batches of any size; needs onnx and onnxscript.

    The weights lie beside the graphs in `encoder.onnx.data` and `decoder.onnx.data`, because a file of protobuf ends at
    2 GiB, which the large model exceeds.

    Args:
        network: fp32, on the host.
    """
    for name, graph in _graphs(network).items():
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                graph,
                _example(network, name),
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUTS[name],
                output_names=OUTPUTS[name],
                dynamic_shapes={argument: {0: "batch"} for argument in INPUTS[name]},
                verbose=False,
            )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # they name files of this machine
        program.save(folder / f"{name}.onnx", external_data=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, torch and onnxscript do not tell what they left as it is, in dozens of lines; errors still raise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
