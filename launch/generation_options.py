"""What `launch/evaluate_generation.py` is asked to measure: its options, and the clips and networks that they name."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from launch.command_line import Parser, counter, script_parser
from launch.inputs import Input, InputFolder, model, shards
from launch.option_types import add_device, path, place, whole_number
from launch.outputs import check_kinds_below, check_output_folder

if TYPE_CHECKING:
    from model.vidtwin import VidTwin
    from trainer.evaluation.catalogue import FeatureNetwork
    from trainer.generation.measure import Measuring

REPORTS = ("report.json", "report.html")
FEATURES, VIDEOS = "features", "videos"
"""What `--output` gets: two files and two folders."""


def generation_parser(file: str, description: str | None) -> Parser:
    """The options of the script `file`."""
    parser = script_parser(file, description)
    parser.add_argument("--samples", type=path, required=True, help="folder that launch/sample.py has written")
    parser.add_argument("--shards", type=place, required=True, help="the real clips: folder or s3://bucket/prefix")
    parser.add_argument("--latents", type=place, required=True, help="dataset of latents of these clips")
    parser.add_argument("--decoder", type=place, required=True, help="model directory of the VidTwin, or s3:// address")
    parser.add_argument("--output", type=path, required=True, help="folder to write; what it holds is used again")
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="val", help="split of the real clips (%(default)s)"
    )
    parser.add_argument(
        "--per-class",
        type=whole_number(1),
        metavar="N",
        help="N real windows and N samples of each class (all)",
    )
    parser.add_argument("--extractor", type=path, metavar="FILE", help="I3D feature network for gFVD, TorchScript")
    parser.add_argument(
        "--few-clips", action="store_true", help="give a gFVD of too few clips, which compares with nothing"
    )
    parser.add_argument(
        "--classifier", type=path, metavar="FILE", help="TorchScript: clips [B, 3, T, S, S] in [0, 1] to logits"
    )
    parser.add_argument("--paper", action="store_true", help="show the paper's gFVD beside, with what differs")
    parser.add_argument(
        "--neighbours",
        type=whole_number(1),
        default=3,
        metavar="N",
        help="clips beside a sample (%(default)s)",
    )
    parser.add_argument(
        "--show", type=whole_number(0), default=16, metavar="N", help="samples on the page, nearest first (%(default)s)"
    )
    add_device(parser)
    return parser


def check(parser: Parser, arguments: argparse.Namespace) -> None:
    """Refuse an option that means nothing, and an output that cannot be written or is an input."""
    if arguments.few_clips and arguments.extractor is None:
        parser.error("--few-clips means nothing without --extractor; leave it away")
    inputs: dict[str, Input] = {
        "--samples": InputFolder(arguments.samples, lambda name: name.endswith((".safetensors", ".json", ".mp4"))),
        "--shards": shards(arguments.shards),
        "--latents": shards(arguments.latents),
        "--decoder": model(arguments.decoder),
    }
    check_output_folder(arguments.output, inputs, empty=False)
    check_kinds_below(arguments.output, REPORTS, {FEATURES: ".npz", VIDEOS: ".mp4"})


def prepare(arguments: argparse.Namespace) -> Measuring:
    """Open everything and refuse what cannot be measured, before anything is written."""
    from trainer.engine.device import find_device
    from trainer.evaluation.feature_networks import frame_networks
    from trainer.evaluation.frechet import VideoFeatures
    from trainer.evaluation.run import load_model
    from trainer.generation.measure import Measuring
    from trainer.generation.memorisation import Training
    from trainer.generation.networks import GFVD, Classifier
    from trainer.generation.protocol import choose
    from trainer.generation.real_clips import RealClips
    from trainer.generation.samples import read_samples, refuse_another_autoencoder
    from trainer.latents.encoder import identify, model_directory

    device = find_device(arguments.device)
    samples = read_samples(arguments.samples)
    clips = RealClips(arguments.shards, arguments.latents)
    chosen = choose(samples, clips, arguments.split, arguments.per_class)
    with naming("--decoder "), model_directory(arguments.decoder) as folder:
        decoder = identify(folder).weights
        network: VidTwin = load_model(folder, device)
    if decoder != clips.description.weights:
        raise ValueError(
            f"--decoder {arguments.decoder} has weights of the digest {decoder}, and --latents {arguments.latents} "
            f"was encoded by the model {clips.description.weights}; name that one"
        )
    refuse_another_autoencoder(samples, decoder, f"--decoder {arguments.decoder}")
    networks: list[FeatureNetwork] = []
    if arguments.extractor is not None:
        networks.append(VideoFeatures(arguments.extractor, device, "--extractor ", name=GFVD))
    networks += frame_networks(device, clips.config.frames)
    if arguments.classifier is not None:
        if not samples.classes:
            raise ValueError(f"--classifier judges classes, and --samples {arguments.samples} has none; leave it away")
        classes = sum(bool(label) for label in clips.training_labels())
        networks.append(Classifier(arguments.classifier, classes, device))
    return Measuring(
        chosen=chosen,
        clips=clips,
        training=Training(arguments.latents),
        model=network,
        decoder=decoder,
        networks=networks,
        cache=arguments.output / FEATURES,
        neighbours=arguments.neighbours,
        allow_few=arguments.few_clips,
        progress=counter,
    )
