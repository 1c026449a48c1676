"""`make bench`: each benchmark against a limit measured in the same run, as a table and as JSON.

    python -m tests.benchmarks [--only step loader builder ...] [--json runs/bench.json]

A benchmark module has `run() -> dict` with at least `name`, `unit`, `value`, `limit`, `limit_is` (what the limit is),
`ratio` and `target`; further figures of the same form may stand in a list `further`. Nothing here fails on a slow
machine: ratios are for people to read.
"""

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

BENCHMARKS = (
    *("step", "compiled", "loader", "builder", "builder_cores", "codecs", "saving", "latents_encoded", "latents_read"),
    "evaluation",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), help="where the figures go")
    arguments = parser.parse_args()
    results = []
    for name in arguments.only:
        print(f"{name} ...", flush=True)
        result = importlib.import_module(f"tests.benchmarks.{name}").run()
        results.append(result)
        for figures in (result, *result.get("further", ())):
            print(
                f"  {figures['name']}: {figures['value']:.4g} {figures['unit']}, limit {figures['limit']:.4g} "
                f"({figures['limit_is']}): ratio {figures['ratio']:.2f}, target {figures['target']:.2f}",
                flush=True,
            )
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))
    print(f"figures: {arguments.json}")


if __name__ == "__main__":
    main()
