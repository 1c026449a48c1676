"""Turn a released VidTwin checkpoint and its YAML into a directory for `VidTwin.from_pretrained`.

    python launch/convert_official.py --checkpoint vidtwin.ckpt --config vidtwin_structure_7_7_8_dynamics_7_8.yaml \\
        --output models/released
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from data_pipeline.store.counted import counted
from launch.command_line import script_parser
from launch.exit_status import DONE, ends_with_status
from launch.option_types import path
from launch.outputs import check_output_folder


@ends_with_status
def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: docs/commands.md."""
    parser = script_parser(__file__, __doc__)
    parser.add_argument("--checkpoint", type=path, required=True, help="the released .ckpt file")
    parser.add_argument("--config", type=path, required=True, help="the YAML it was trained with (model.params...)")
    parser.add_argument("--output", type=path, required=True, help="directory to write; new or empty")
    arguments = parser.parse_args(argv)
    check_output_folder(arguments.output, {})

    from data_pipeline.store.files import atomic_folder
    from model.official import convert

    with atomic_folder(arguments.output) as folder:
        result = convert(arguments.checkpoint, arguments.config, folder)
    for reason, count in Counter(result.unused.values()).items():
        print(f"not used: {counted(count, 'key')} ({reason})")
    for file in result.written:
        print(f"wrote {arguments.output / file.name}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
