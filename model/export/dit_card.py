"""The model card of the directory of a DiT (see `card.py`)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from model.dit_config import Conditioning, DiTDescription, Objective
from model.export.card import CARD_FILE, LIBRARIES, flat, front_matter, origin, table
from model.export.formats import Format
from model.provenance import Provenance

DIT_USE = """\
```bash
python launch/sample.py --model DIRECTORY --output samples --count 4 --decoder VIDTWIN_DIRECTORY --fps 8
```

```python
from model.dit import DiT

dit = DiT.from_pretrained("DIRECTORY")
```

`launch/sample.py` and `model` belong to the VidTwin training framework.
"""


def write_dit_card(folder: Path, described: DiTDescription, provenance: Provenance | None) -> None:
    """Write the card into a model directory.

    Args:
        provenance: of the weights; None where no training of this project made them.
    """
    (folder / CARD_FILE).write_text(dit_card(described, provenance), "utf-8")


def dit_card(described: DiTDescription, provenance: Provenance | None) -> str:
    """The text of the card."""
    latents = described.latents
    told = {
        Conditioning.none: "It is told nothing of the clip that it makes.",
        Conditioning.class_: f"It is told one of {len(latents.classes)} classes: {', '.join(latents.classes)}.",
        Conditioning.text: f"It is told a caption as token embeddings of width {latents.text_width}.",
    }[described.dit.condition]
    x0 = described.process.objective is Objective.x0
    predicted = "the latents without noise" if x0 else "the velocity from the latents to the noise"
    shapes = {"structure": latents.structure_shape, "dynamics": latents.dynamics_shape}
    tensors = [
        (name, f"[B, {', '.join(map(str, shape))}]", "normalised by `dit.normaliser`") for name, shape in shapes.items()
    ]
    settings = flat({"dit": asdict(described.dit), "process": asdict(described.process)})
    return "\n".join(
        [
            front_matter(LIBRARIES[Format.model], "diffusion"),  # hubs have no task for making video of a class
            "# A diffusion transformer for the latents of VidTwin",
            "",
            "It makes the *structure* and *dynamics* latents of new clips, which a VidTwin decodes into video",
            "([Wang et al., CVPR 2025](https://arxiv.org/abs/2412.17726)).",
            f"{told} From noisy latents it predicts {predicted}.",
            "",
            "## Use",
            "",
            DIT_USE,
            table([("tensor", "layout", "values"), *tensors]),
            f"SHA-256 over the weights of the VidTwin that made the latents: {latents.autoencoder or 'not known'}.",
            "",
            "## Configuration",
            "",
            table([("setting", "value"), *settings]),
            "## Where the weights come from",
            "",
            origin(provenance),
        ]
    )
