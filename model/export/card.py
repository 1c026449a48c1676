"""The model card of an exported directory: a README.md in the form that model hubs read, front matter first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.config import COLOURS, VidTwinConfig
from model.export.formats import Format
from model.export.graphs import INPUTS, MOST_CLIPS, OPSET, OUTPUTS
from model.provenance import Provenance

CARD_FILE = "README.md"
LIBRARIES = {
    Format.model: "vidtwin",
    Format.torch_export: "pytorch",
    Format.onnx: "onnx",
    Format.diffusers: "diffusers",
}
USE = {
    Format.model: """\
```python
from model.vidtwin import VidTwin

vidtwin = VidTwin.from_pretrained("DIRECTORY")
latents = vidtwin.encode(video)
video = vidtwin.decode(latents)
```

`model` is a package of the VidTwin training framework.
""",
    Format.torch_export: """\
```python
import torch

encoder = torch.export.load("DIRECTORY/encoder.pt2").module()
decoder = torch.export.load("DIRECTORY/decoder.pt2").module()
structure, _, dynamics_w, _, dynamics_h, _ = encoder(video)
video = decoder(structure, torch.cat([dynamics_w, dynamics_h], dim=-1))
```
""",
    Format.onnx: """\
```python
import numpy as np
import onnxruntime

encoder = onnxruntime.InferenceSession("DIRECTORY/encoder.onnx")
decoder = onnxruntime.InferenceSession("DIRECTORY/decoder.onnx")
structure, _, dynamics_w, _, dynamics_h, _ = encoder.run(None, {"video": video})
dynamics = np.concatenate([dynamics_w, dynamics_h], axis=-1)
(video,) = decoder.run(None, {"structure": structure, "dynamics": dynamics})
```

`encoder.onnx.data` and `decoder.onnx.data` hold the weights and must lie beside the graphs.
""",
    Format.diffusers: """\
```python
from diffusers import AutoModel

autoencoder = AutoModel.from_pretrained("DIRECTORY", trust_remote_code=True)  # runs autoencoder_vidtwin.py
z = autoencoder.encode(video).latent_dist.sample()  # z.structure, z.dynamics
video = autoencoder.decode(z).sample
```

Without diffusers, with torch and safetensors alone:

```python
import sys

sys.path.insert(0, "DIRECTORY")
from autoencoder_vidtwin import AutoencoderVidTwin

autoencoder = AutoencoderVidTwin.from_pretrained("DIRECTORY")
z = autoencoder.encode(video).latent_dist.mode()
video = autoencoder.decode(z).sample
```

`autoencoder.normalize(z)` brings each channel to mean 0 and deviation 1 by `latents_mean` and `latents_std` of
`config.json` (null where they were not measured), `autoencoder.denormalize(z)` undoes it.
""",
}


def write_card(folder: Path, form: Format, config: VidTwinConfig, provenance: Provenance | None) -> None:
    """Write the card into an exported directory.

    Args:
        config: of the exported model.
        provenance: of its weights; None where no training of this project made them.
    """
    (folder / CARD_FILE).write_text(card(form, config, provenance), "utf-8")


def card(form: Format, config: VidTwinConfig, provenance: Provenance | None) -> str:
    """The text of the card."""
    return "\n".join(
        [
            front_matter(LIBRARIES[form], "autoencoder", "video-to-video"),
            "# VidTwin, a video autoencoder",
            "",
            "It turns a clip into a *structure* latent (what is there and how it slowly moves) and a *dynamics* latent",
            "(what moves fast), and back ([Wang et al., CVPR 2025](https://arxiv.org/abs/2412.17726)).",
            "",
            "## Use",
            "",
            USE[form],
            _tensors(form, config),
            "## Configuration",
            "",
            table([("setting", "value"), *flat(asdict(config))]),
            "## Where the weights come from",
            "",
            origin(provenance),
        ]
    )


def front_matter(library: str, kind: str, task: str = "") -> str:
    """The license is left to whoever publishes the weights: a comment names the line, which a hub would check."""
    pipeline = f"pipeline_tag: {task}\n" if task else ""
    return f"""\
---
library_name: {library}
{pipeline}tags:
- vidtwin
- video
- {kind}
# license: fill in the license of these weights, such as apache-2.0, and remove the sign in front
---
"""


def _tensors(form: Format, config: VidTwinConfig) -> str:
    """Layouts and ranges."""
    d_s, queries, h_s, w_s = config.structure_shape
    d_d, frames, sides = config.dynamics_shape
    lengths = f", or fewer frames, down to {config.shortest}" if config.min_frames else ""
    graph = form in (Format.torch_export, Format.onnx)
    rows = [
        ("tensor", "layout", "values"),
        (
            "video",
            f"[B, {COLOURS}, {frames}, {config.image_size}, {config.image_size}]: clips, RGB, frames, height, width"
            + ("" if graph else lengths),
            "floats in [-1, 1]; of uint8 frames `video / 127.5 - 1`. What the decoder gives is not clamped",
        ),
        ("structure", f"[B, {d_s}, {queries}, {h_s}, {w_s}]: clips, channels, moments, height, width", "prior N(0, 1)"),
        (
            "dynamics",
            f"[B, {d_d}, {frames}, {sides}]: clips, channels, frames, {sides // 2} columns (dynamics_w) and then "
            f"{sides // 2} rows (dynamics_h)",
            "prior N(0, 1)",
        ),
    ]
    text = table(rows)
    if not graph:
        return text
    outputs = ", ".join(f"`{name}`" for name in OUTPUTS["encoder"])
    inputs = " and ".join(f"`{name}`" for name in INPUTS["decoder"])
    moments = "means and log-variances of the posteriors, the latter in [-30, 20]"
    batch = f"1 to {MOST_CLIPS} clips" if form is Format.torch_export else f"any number of clips; ONNX opset {OPSET}"
    return (
        f"{text}The encoder takes `video` and gives {outputs}:\n"
        f"{moments}. The decoder takes {inputs} and gives `video`.\n"
        f"B is {batch}. The weights are fp32.\n\n"
    )


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Dotted key and value of each setting."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        rows += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, str(value))]
    return rows


def origin(provenance: Provenance | None) -> str:
    """Where the weights come from, as the text of its section."""
    if provenance is None:
        return "No training of this project wrote down where these weights come from.\n"
    kinds = {"ema": "moving average of the weights", "raw": "the weights themselves, no average"}
    rows = [
        ("", "value"),
        ("training step", str(provenance.step)),
        ("weights", kinds[provenance.weights.value]),
        ("program (SHA-256)", provenance.program or "not known"),
    ]
    if provenance.forked_from:
        rows.append(("forked at step", str(provenance.forked_from.get("step", "not known"))))
    return table(rows)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as a table in Markdown; the first one is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|{' --- |' * len(rows[0])}", *body, ""]) + "\n"
