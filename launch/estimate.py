"""Memory of a rank by ZeRO stage, and clips a second, before a training is started (docs/training.md).

python launch/estimate.py --config configs/train/paper.yaml configs/model/base.yaml --gpus 6 key=value...
"""

from __future__ import annotations

import sys

from trainer.config_loader import config_parser, load_config, parse_overrides

# What a training must be told and an estimate need not know.
UNUSED = ["output=unused", "data.shards=unused", "loss.lpips_weights=unused", "init_from=unused"]


def main() -> int:
    """Parse, estimate, print."""
    from trainer import estimate
    from trainer.config import TrainConfig

    parser = config_parser(TrainConfig, "Estimate memory and speed of a training of launch/train.py.")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="ranks that share the global batch (1)")
    parser.add_argument(
        "--device", choices=[*estimate.PEAKS, "this"], default="h100", help="whose speed; this = measure it here (h100)"
    )
    parser.add_argument(
        "--share",
        type=float,
        help="share of that speed a step reaches (0.43 of a data sheet's, 0.8 of what `this` measures)",
    )
    arguments = parse_overrides(parser)
    try:
        config = load_config(TrainConfig, arguments.config, UNUSED + arguments.overrides)
        rate = estimate.device_rate(config, arguments.device)
        share = arguments.share or (estimate.MEASURED_SHARE if arguments.device == "this" else estimate.ASSUMED_SHARE)
        found = estimate.estimate(config, arguments.gpus, rate * share)
    except ValueError as error:
        print(f"launch/estimate.py: {error}", file=sys.stderr)
        return 2
    print(estimate.table(found, config, arguments.gpus))
    assumed = "measured here" if arguments.device == "this" else "from its data sheet"
    print(f"                at {share:.2f} (an assumption) of {rate / 1e12:.4g} TFLOP/s a rank, {assumed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
