"""Weights & Biases, an extra: `pip install -e '.[wandb]'`. Account, server and mode are the library's own business
(`wandb login`, WANDB_BASE_URL, WANDB_MODE=offline).
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Mapping
from html import escape
from pathlib import Path

import wandb
from torch import Tensor

from trainer.telemetry.gif import gif_of
from trainer.telemetry.literal import literal

STEP = "step"
"""The axis of all curves. The library's own counter of steps cannot go back, and a run that is set back must."""


class WeightsAndBiases:
    """A logger (see `loggers.py`) that is one run there; a run that goes on here goes on there.

    Args:
        project: its name there.
        output: the run's directory, whose name is the run's; the library's files and the run's id are in its `wandb/`.
        settings: the run's configuration.
    Raises:
        ValueError: there is no login, or the library refuses for another reason.
    """

    def __init__(self, project: str, output: Path, settings: Mapping[str, object]) -> None:
        id_file = output / "wandb" / "id"
        run_id = id_file.read_text().strip() if id_file.is_file() else secrets.token_hex(8)
        try:
            self._run = wandb.init(
                project=project,
                dir=output,
                id=run_id,
                name=output.resolve().name,
                config=dict(settings),
                resume="allow",
                settings=wandb.Settings(console="off", silent=True),  # the console stays the run's own
            )
        except wandb.Error as error:
            raise ValueError(
                f"telemetry.wandb={project}: {error}; log in with `wandb login`, or set WANDB_MODE=offline and send "
                "the run later with `wandb sync`"
            ) from error
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(run_id)  # kept from the first start on, but not by one that the library refuses
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)

    def set_back(self, step: int) -> None:
        """Nothing: what comes again is drawn again at its step."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP: step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        self._run.log({STEP: step, name: wandb.Html(f"<pre>{escape(literal(text))}</pre>", inject=False)})

    def pictures(self, step: int, name: str, clips: Tensor) -> None:
        encoded, _, _ = gif_of(clips)
        self._run.log({STEP: step, name: wandb.Video(io.BytesIO(encoded), format="gif")})

    def flush(self) -> None:
        """Nothing: the library sends in the background."""

    def close(self) -> None:
        self._run.finish()
