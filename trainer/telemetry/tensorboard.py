"""TensorBoard's files in OUTPUT/tensorboard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from trainer.telemetry.gif import gif_of
from trainer.telemetry.literal import literal


class TensorBoard:
    """A logger (see `loggers.py`) that writes event files for `tensorboard --logdir`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: SummaryWriter | None = None

    @property
    def _writer(self) -> SummaryWriter:
        assert self._opened is not None, "set_back opens the files"
        return self._opened

    def set_back(self, step: int) -> None:
        """Open new files, which tell TensorBoard to drop what the old ones say of later steps."""
        self.close()
        self._opened = SummaryWriter(str(self._folder), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A block of code in Markdown. TensorBoard would load a picture of an address that the text names otherwise."""
        shown = literal(text)
        fence = "`" * (3 + max(map(len, re.findall("`+", shown)), default=0))
        self._writer.add_text(name, f"{fence}\n{shown}\n{fence}", step)

    def pictures(self, step: int, name: str, clips: Tensor) -> None:
        """A GIF inside an image summary, which TensorBoard moves, and which needs no further library."""
        encoded, height, width = gif_of(clips)
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
