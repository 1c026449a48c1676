"""Official weights from the golden vectors' formula, and an official checkpoint and YAML made of them.

golden/*.json and *.npz were produced by the paper's own code on the CPU (no dropout, posterior means, no LPIPS):
golden_* in fp32 with the rounding of one processor, golden64_* in fp64, the same for all.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


@dataclass(kw_only=True)
class Golden:
    """One golden case: the official YAML's model arguments, parameter shapes, loss values, arrays."""

    params: dict[str, Any]
    shapes: dict[str, list[int]]
    losses: dict[str, Any]
    arrays: dict[str, Tensor]

    @property
    def input_size(self) -> tuple[int, int, int]:
        return tuple(self.params["encoder_config"]["params"]["input_size"])


def load_golden(name: str) -> Golden:
    document = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive}
    return Golden(params=document["config"], shapes=document["param_shapes"], losses=document["losses"], arrays=arrays)


def load_golden64(name: str) -> Golden:
    """The same case in fp64; arrays above 20,000 elements are every seventh element of the flattened array."""
    golden, exact = load_golden(name), name.replace("golden", "golden64")
    losses = json.loads((GOLDEN / f"{exact}.json").read_text())
    with np.load(GOLDEN / f"{exact}.npz") as archive:
        arrays = {key: torch.from_numpy(archive[key]) for key in archive}
    return Golden(params=golden.params, shapes=golden.shapes, losses=losses, arrays=arrays)


def formula_weight(name: str, shape: list[int]) -> Tensor:
    """The golden README's value of an official parameter."""
    count = int(np.prod(shape)) if shape else 1
    v = np.sin(0.7 * np.arange(count, dtype=np.float64) + zlib.crc32(name.encode()) % 997)
    one_dimensional = len(shape) == 1
    if (
        name.endswith(("LayerNorm.weight", "layernorm.weight"))
        or (".main." in name and one_dimensional and name.endswith("weight"))
        or name.endswith("running_var")
    ):
        v = 1 + 0.1 * v
    elif name.endswith(("bias", "running_mean")):
        v = 0.05 * v
    elif name.endswith("logvar"):
        v = 0.1 * v
    elif name.endswith(("scale_shift_table", "query_embeds")):
        v = 0.5 * v
    elif name.startswith("loss.discriminator"):
        v = 0.05 * v
    else:
        fan = shape[0] if one_dimensional else np.prod(shape[1:])
        v = v * (0.3 if name.startswith(("motion_head", "bottle_down")) else 1.5) / np.sqrt(fan)
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def golden_video(size: tuple[int, int, int], step: int = 0, batch: int = 2) -> Tensor:
    """The golden README's input of training step `step`."""
    count = batch * 3 * int(np.prod(size))
    i = np.arange(count, dtype=np.float64)
    x = np.clip(np.sin(0.013 * i + 0.5 * step) + 0.3 * np.sin(0.37 * i + step), -1, 1)
    return torch.from_numpy(x.astype(np.float32).reshape(batch, 3, *size))


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Second implementation of the positions: one loop for each frequency."""
    table = np.zeros((len(positions), width))
    for d in range(width // 2):
        angle = positions / 10000 ** (2 * d / width)
        table[:, d], table[:, width // 2 + d] = np.sin(angle), np.cos(angle)
    return table


def position_buffers(frames: int, grid: int, width: int) -> dict[str, Tensor]:
    """The four float64 buffers an official checkpoint holds."""
    row, column = np.divmod(np.arange(grid * grid), grid)
    spatial = np.concatenate([sincos(column, width // 2), sincos(row, width // 2)], axis=1)
    tables = {"pos_embed": spatial, "pos_embed_temporal": sincos(np.arange(frames), width)}
    return {
        f"{side}.{name}": torch.from_numpy(table)[None]
        for side in ("encoder", "decoder")
        for name, table in tables.items()
    }


def official_state_dict(golden: Golden) -> dict[str, Tensor]:
    """What `state_dict` of the official checkpoint would hold, LPIPS aside."""
    encoder = golden.params["encoder_config"]["params"]
    frames, size, _ = encoder["input_size"]
    state = {name: formula_weight(name, shape) for name, shape in golden.shapes.items()}
    state |= position_buffers(frames, size // encoder["patch_size"][1], encoder["hidden_size"])
    for name in list(state):
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(0)
    return state


def write_official(directory: Path, state: dict[str, Tensor], params: dict[str, Any]) -> tuple[Path, Path]:
    """A Lightning-like checkpoint and its YAML."""
    checkpoint, config = directory / "official.ckpt", directory / "official.yaml"
    extras = {"epoch": 3, "global_step": 1000, "pytorch-lightning_version": "2.0.0", "loops": {}, "callbacks": {}}
    torch.save({"state_dict": state, **extras}, checkpoint)
    target = "vidtwin.models.vidtwin_ae.VidAutoEncoderQformerCompactSymVidVAE"
    config.write_text(yaml.safe_dump({"model": {"target": target, "params": params}}))
    return checkpoint, config
