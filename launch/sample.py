"""Make latents of new clips with a DiT, one .safetensors file each, and videos of them where a decoder is named.

    python launch/sample.py --model runs/dit/model_ema --output samples --count 4 --classes Basketball Diving
    python launch/sample.py --model runs/dit/model_ema --output samples --count 4 --decoder runs/base/model --fps 8
    python launch/sample.py --model runs/dit/model_ema --output samples --encoder minilm --prompts "a cat runs"
    torchrun --nproc_per_node 8 launch/sample.py --model runs/dit/model_ema --output samples --count 100

The same command again goes on, with any number of processes: samples that exist are kept.
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Sequence
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING

from data_pipeline.outside.naming import naming
from data_pipeline.store.counted import counted
from launch.command_line import Parser, counter, script_parser
from launch.exit_status import DONE, ends_with_status
from launch.inputs import Input, encoder, model
from launch.option_types import add_device, not_negative, path, place, positive_number, whole_number
from launch.outputs import check_kinds_below, check_output_folder

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from model.dit import DiT
    from trainer.sampling.generate import Sampling, Wanted

MOST_OF_EACH = 100_000
"""Samples of a class or prompt: their files are numbered from 00000 to 99999, so that names sort as numbers do."""


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if (arguments.decoder is None) != (arguments.fps is None):
        parser.error("--decoder and --fps go together: videos need both")
    if arguments.fps is not None and not 0.01 <= arguments.fps <= 1000:
        parser.error(f"--fps {arguments.fps:g} must lie between 0.01 and 1000")
    if arguments.count > MOST_OF_EACH:
        parser.error(f"--count {arguments.count} is beyond {MOST_OF_EACH}, because names of samples have five digits")
    inputs: dict[str, Input] = {"--model": model(arguments.model), "--decoder": model(arguments.decoder)}
    inputs |= {"--encoder": encoder(arguments.encoder), "--prompt-file": arguments.prompt_file}
    check_output_folder(arguments.output, inputs, empty=False)
    if find_spec("diffusers") is None:
        raise ValueError("the samplers are those of diffusers, which is missing: pip install -e '.[diffusers]'")
    return _sample(arguments)


def _sample(arguments: argparse.Namespace) -> int:
    from data_pipeline.store.files import file_sha256
    from model.config import WEIGHTS_FILE
    from model.dit import DiT
    from trainer.sampling.generate import SAMPLES, Sampling, generate, guidance_of, wanted_samples
    from trainer.sampling.grid import PAGE_FILE
    from trainer.sampling.prompts import listed_prompts, wanted_prompts
    from trainer.sampling.videos import VIDEOS, decode_samples, open_decoder, refuse_other_videos
    from trainer.team import device_of_rank, joined

    check_kinds_below(arguments.output, (SAMPLES.name, VIDEOS.name, PAGE_FILE), {})
    device = device_of_rank(arguments.device)
    with naming("--model "):
        dit = DiT.from_pretrained(arguments.model, device)
    prompts = listed_prompts(arguments.prompts, arguments.prompt_file)
    if prompts or arguments.encoder is not None:
        wanted = wanted_prompts(dit, prompts, arguments.encoder, arguments.classes, arguments.count, device)
    else:
        wanted = wanted_samples(dit, arguments.classes, arguments.count)
    decoder, fps = None, Fraction(arguments.fps or 0).limit_denominator(1001)
    if arguments.decoder:
        decoder = open_decoder(arguments.decoder, dit.space, device)
        refuse_other_videos(arguments.output, fps)
    sampling = Sampling(
        weights=file_sha256(arguments.model / WEIGHTS_FILE),
        autoencoder=dit.space.autoencoder,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=guidance_of(dit, arguments.guidance),
    )
    equal = {"samples": str(wanted), "settings": str(sampling), "--fps": str(arguments.fps)}
    with joined(device, str(arguments.output), equal) as team:
        made = generate(
            dit, sampling, wanted, arguments.output, batch=arguments.batch, progress=counter("samples"), team=team
        )
        if team.is_main:
            print(f"{arguments.output}: {counted(made, 'new sample')} of {len(wanted)}", flush=True)
        if decoder is not None:
            written = decode_samples(
                decoder,
                [item.name for item in wanted],
                arguments.output,
                fps,
                frames=dit.space.dynamics_shape[1],
                progress=counter("videos"),
                team=team,
            )
            if team.is_main:
                page = _page(arguments.output, wanted, dit, sampling)
                print(f"{arguments.output}: {counted(written, 'new video')}; {page}")
    return DONE


def _page(output: Path, wanted: Sequence[Wanted], dit: DiT, sampling: Sampling) -> str:
    """Write the page of all videos, and return what the last line says of the page."""
    from trainer.sampling.grid import write_grid
    from trainer.sampling.videos import rows_of

    digests = {"weights": sampling.weights[:12], "autoencoder": sampling.autoencoder[:12] or "not known"}
    rows = rows_of(output, wanted)
    page = write_grid(output, rows, {**vars(sampling), **digests}, dit.config.condition)
    return f"{page} is the page of {counted(sum(len(row.videos) for row in rows), 'video')}"


def _parser() -> Parser:
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--model", type=path, required=True, help="directory of a DiT, such as OUTPUT/model_ema")
    parser.add_argument("--output", type=path, required=True, help="folder to write; samples in it are kept")
    parser.add_argument("--count", type=whole_number(1), default=1, help="samples of each class or prompt (1)")
    parser.add_argument("--prompts", nargs="+", default=[], help="captions of what to make, each one word: quote them")
    parser.add_argument("--prompt-file", type=path, help="a text file with a prompt in each line, in UTF-8")
    parser.add_argument("--encoder", type=path, help="directory of the encoder whose texts the DiT was trained with")
    parser.add_argument("--classes", nargs="+", default=[], help="names of classes (default: all of the model)")
    parser.add_argument(
        "--guidance",
        type=not_negative,
        help="1 = the class or prompt as it is, 0 = without it, more = further to it; default: 5, "
        "as the paper, and 1 for a model without a condition",
    )
    parser.add_argument("--steps", type=whole_number(1), default=50, help="steps of the sampler (%(default)s)")
    parser.add_argument("--seed", type=whole_number(0), default=0, help="of the noise (%(default)s)")
    parser.add_argument("--batch", type=whole_number(1), default=16, help="samples a process makes at once (16)")
    parser.add_argument("--decoder", type=place, help="model directory of the VidTwin, or its s3:// address: for .mp4")
    parser.add_argument("--fps", type=positive_number, help="frames a second of the videos")
    parser.add_argument("--local_rank", type=int, default=0, help=SUPPRESS)  # the deepspeed launcher sends it
    add_device(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
