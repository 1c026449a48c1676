"""Turn a released VidTwin checkpoint and its YAML into a directory for `VidTwin.from_pretrained`.

    python launch/convert_official.py --checkpoint vidtwin.ckpt --config vidtwin_structure_7_7_8_dynamics_7_8.yaml \\
        --output models/released
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from model.official import convert


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 written, 1 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="the released .ckpt file")
    parser.add_argument("--config", type=Path, required=True, help="the YAML it was trained with (model.params...)")
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    arguments = parser.parse_args(argv)
    try:
        result = convert(arguments.checkpoint, arguments.config, arguments.output)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for reason, count in Counter(result.unused.values()).items():
        print(f"not used: {count} keys ({reason})")
    for file in result.written:
        print(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
