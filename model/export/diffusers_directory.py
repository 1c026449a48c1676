"""A directory that diffusers loads: configuration, weights, and the code in one file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.config import VidTwinConfig
from model.export.formats import AUTO_MAP, CLASS, CODE_FILE, SETTINGS_FILE, TENSORS_FILE
from model.export.latent_statistics import LatentStatistics
from model.export.one_file import one_file
from model.network import VidTwinNetwork
from model.weights import save_tensors


def settings_of(config: VidTwinConfig, statistics: LatentStatistics | None) -> dict[str, Any]:
    """What `config.json` holds: the class and its file, the architecture, and statistics of the latents or null."""
    mean, std = (None, None) if statistics is None else (statistics.mean, statistics.std)
    origin = {"_class_name": CLASS, "auto_map": AUTO_MAP}
    return origin | asdict(config) | {"latents_mean": mean, "latents_std": std}


def write_diffusers(network: VidTwinNetwork, folder: Path, statistics: LatentStatistics | None = None) -> None:
    """Write the directory's files but its model card; neither diffusers nor a GPU is needed.

    The file of weights does not carry the provenance, whose settings hold paths of the machines of the training.
    """
    (folder / CODE_FILE).write_text(one_file(), "utf-8")
    settings = settings_of(network.config, statistics)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    weights = {f"vidtwin.{name}": value for name, value in network.state_dict().items()}
    save_tensors(weights, folder / TENSORS_FILE, {"format": "pt"})
