"""Build WebDataset shards from raw captioned videos with Ray; run the same command again to go on where it stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from data_pipeline.build.builder import BuildResult, build
from data_pipeline.build.config import ShardsConfig
from data_pipeline.dataset.finalize import status
from data_pipeline.store.open import open_store
from launch.command_line import config_parser, parse_overrides
from trainer.config.loader import load_config


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 complete, 1 some units failed, 2 wrong input, 130 interrupted."""
    parser = config_parser(ShardsConfig, __doc__ or "")
    parser.add_argument("--source", help="folder of videos or manifest (.csv .tsv .jsonl .parquet); sets source=")
    parser.add_argument("--output", help="folder or s3://bucket/prefix; sets output=")
    parser.add_argument("--address", help="Ray cluster to use, `auto` for the running one; sets run.address=")
    parser.add_argument("--append", action="store_true", help="add another manifest to a dataset, as new units")
    parser.add_argument("--retry-quarantined", action="store_true", help="try the quarantined rows of the source again")
    parser.add_argument("--status", metavar="OUTPUT", help="say how far a dataset is, and do nothing")
    arguments = parse_overrides(parser, argv)
    named = {"source": arguments.source, "output": arguments.output, "run.address": arguments.address}
    words = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    try:
        if arguments.status:
            print(status(open_store(arguments.status)))
            return 0
        config = load_config(ShardsConfig, arguments.config, [*arguments.overrides, *words])
        result = build(config, append=arguments.append, retry_quarantined=arguments.retry_quarantined)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on: finished units are kept", file=sys.stderr)
        return 130
    return report(config, result)


def report(config: ShardsConfig, result: BuildResult) -> int:
    """Say how it ended."""
    if result.dataset is None:
        for unit, why in sorted(result.failed.items())[:20]:
            print(f"unit {unit:06d} failed: {why}", file=sys.stderr)
        print(
            f"error: {len(result.failed)} of {result.plan.units} units failed; run the same command again to build "
            "what is not committed",
            file=sys.stderr,
        )
        return 1
    print(result.dataset.ledger.table())
    if result.built:
        print(f"speed     {result.clips_per_s:.2f} clips/s over {result.built} units in this run")
    print(f"dataset   {config.output}")
    print(f"check it  python launch/verify_shards.py {config.output}")
    return 0


if __name__ == "__main__":
    ended = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray is shut down by now; its native threads have been seen to crash Python's own exit, which would turn a dataset
    # that is complete into a failure.
    os._exit(ended)
