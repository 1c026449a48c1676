"""The paper's protocols of reconstruction and its rows, and in what a measurement differs from them.

Rows: arXiv 2412.17726, table 1. Its tables have no reconstruction of UCF-101, whose row is therefore empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = ("rate", "psnr", "ssim", "lpips", "fvd")
"""The columns of the table of the paper beside ours; the rate is in percent."""
_FRAMES, _SIDE = 16, 224
Row = Mapping[str, float]


def _row(rate: float, psnr: float, lpips: float, ssim: float, fvd: float) -> Row:
    return {"rate": rate, "psnr": psnr, "ssim": ssim, "lpips": lpips, "fvd": fvd}


MCL_JCV_ROWS: Mapping[str, Row] = {
    "iVideoGPT": _row(1.50, 19.35, 0.468, 0.575, 1693),
    "MAGVIT-v2": _row(0.65, 24.35, 0.335, 0.688, 654),
    "CMD": _row(6.85, 27.33, 0.273, 0.775, 468),
    "EMU-3": _row(0.53, 25.36, 0.254, 0.726, 354),
    "CV-VAE": _row(0.53, 28.06, 0.244, 0.755, 402),
    "VidTwin": _row(0.20, 28.137, 0.2414, 0.8044, 388.86),
}


@dataclass(frozen=True)
class Protocol:
    """How the paper measures on a collection.

    Attributes:
        name: the word that chooses it.
        collection: in print.
        videos: how many the collection has.
        rows: the paper's, by method.
        remark: what a reader must know of the rows.
        list_file: the list of videos that belongs to it, relative to the folder of the lists; empty without one.
    """

    name: str
    collection: str
    videos: int
    rows: Mapping[str, Row]
    remark: str
    list_file: str = ""


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "mcl-jcv",
            "MCL-JCV",
            30,
            MCL_JCV_ROWS,
            "The paper says neither which file computes its FVD nor of how many clips.",
        ),
        Protocol(
            "ucf-101",
            "UCF-101",
            3783,
            {"VidTwin": {}},
            "The paper reconstructs no UCF-101, so its row is empty. Its gFVD is of generated clips, which "
            "launch/evaluate_generation.py measures.",
            "testlist01.txt",
        ),
    )
}
_LISTS = "ucfTrainTestlist"


def find_list(protocol: Protocol, source: Path) -> Path | None:
    """The list of a protocol's videos, in the folder of the videos or beside it; None where the protocol has none.

    Raises:
        ValueError: the list is not there.
    """
    if not protocol.list_file:
        return None
    folders = [source / _LISTS, source.parent / _LISTS, source, source.parent]
    found = next((folder / protocol.list_file for folder in folders if (folder / protocol.list_file).is_file()), None)
    if found is None:
        raise ValueError(
            f"--protocol {protocol.name} measures the videos of {protocol.list_file}, which is neither in {source} nor "
            f"beside it (also not in a folder {_LISTS}); name it with --list"
        )
    return found


def differences(protocol: Protocol, result: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The differences between how a result was measured and what the paper says of its own.

    Args:
        result: of one model, as `trainer.evaluation.report` makes it.
        options: of the command, as option -> value; those that are None were not given.
    """
    found = [
        f"{what}: paper {theirs}, here {ours}"
        for what, theirs, ours in (
            ("videos", protocol.videos, result["sources"]),
            ("frames of a window", _FRAMES, result["frames_per_window"]),
            ("size in pixels", _SIDE, result["image_size"]),
        )
        if theirs != ours
    ]
    found += [f"{option} {value} was given" for option, value in options.items() if value is not None]
    found += [f"{name} is not computed" for name in ("lpips", "fvd") if name in result["not_computed"]]
    if result["incomplete"]:
        found.append(f"the measurement was cut short: {result['incomplete']}")
    if result["left_out_frames"]:
        found.append(
            f"{result['left_out_frames']} frames behind the last whole windows are left out; the paper's script "
            "repeats the last frame until a window is full"
        )
    return found


def beside(protocol: Protocol, models: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's rows beside ours.

    Args:
        models: name of a model -> its result.
    Returns:
        `collection`, `source`, `remark`, `rows` (each with `name`, `from` and the values of `COLUMNS`, None where there
        is none) and `differences`, by the name of the model.
    """
    rows: list[dict[str, Any]] = [
        {"name": name, "from": "paper", **{column: row.get(column) for column in COLUMNS}}
        for name, row in protocol.rows.items()
    ]
    for name, result in models.items():
        values = {column: result["metrics"].get(column, {}).get("value") for column in COLUMNS}
        rows.append({"name": name, "from": "here", **values, "rate": 100 * result["compression_rate"]})
    return {
        "protocol": protocol.name,
        "collection": protocol.collection,
        "source": "arXiv 2412.17726, table 1",
        "remark": protocol.remark,
        "rows": rows,
        "differences": {name: differences(protocol, result, options) for name, result in models.items()},
    }
