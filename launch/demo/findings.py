"""The demo's results, read back from its files: what became of the source rows, the metrics, the verdicts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.ledger import Ledger
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.plan_rows import PlanRows
from data_pipeline.dataset.row_fates import QUARANTINED, REJECTED, RejectedStretch, RowFate
from data_pipeline.dataset.units import read_record
from data_pipeline.source.config import SplitConfig
from data_pipeline.source.row_rules import split_of
from data_pipeline.store.open import open_store

HELD_OUT_GAIN = 7.0  # dB of PSNR over the same model untrained, on windows it never saw
TRAINED_PSNR = 19.0  # dB on windows it trained on
DISCRIMINATOR_SHARE = 1 / 3  # of the steps


@dataclass
class RowStory:
    """One source row: its columns, its fate, and the reasons why parts of it were left out."""

    row: int
    video: str
    start: float | None
    end: float | None
    split: str
    caption: str
    fate: str
    clips: int
    reasons: list[str]


@dataclass
class Verdict:
    """One expectation and the demo's result."""

    what: str
    result: str
    expected: str
    met: bool


def row_stories(shards: Path) -> list[RowStory]:
    """Every source row in order, with its fate from the commit records."""
    store = open_store(str(shards))
    dataset = Dataset.open(store)
    plan = dataset.plan
    rows = PlanRows(dataset)
    shares = SplitConfig(val=plan.settings["split.val"], test=plan.settings["split.test"])
    stories: dict[int, RowStory] = {}
    for unit in range(plan.units):
        for row, fate in zip(rows.unit(unit), read_record(store, unit).rows, strict=True):
            stories[row.row] = RowStory(
                row=row.row,
                video=Path(row.video).name,
                start=row.start,
                end=row.end,
                split=split_of(row.video, row.split, shares),
                caption=row.caption or "",
                fate=fate.fate,
                clips=fate.clips,
                reasons=_reasons(fate),
            )
    return [stories[number] for number in sorted(stories)]


def _reasons(fate: RowFate) -> list[str]:
    if fate.fate == QUARANTINED:
        return [f"{fate.error}: {fate.detail}"]
    stretches = [f"{item.start:g} to {item.end:g} s: {_measured(item)}" for item in fate.stretches]
    return stretches or ([_measured(fate)] if fate.fate == REJECTED else [])


def _measured(item: RowFate | RejectedStretch) -> str:
    values = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                       for name, value in (item.measured or {}).items())  # fmt: skip
    return item.reason.replace("_", " ") + (f" ({values})" if values else "")


def ledger(shards: Path) -> Ledger:
    """The totals of dataset.json."""
    return read_dataset(open_store(shards)).ledger


def metrics(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(weights, split) -> evaluation result, for weights untrained and trained and splits val and train."""
    results = {}
    for weights in ("untrained", "trained"):
        (model,) = json.loads((folder / weights / "report.json").read_text("utf-8"))["models"]
        for split, result in zip(("val", "train"), model["results"], strict=True):
            results[weights, split] = result
    return results


def training_rows(run: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that log a step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [row for row in rows if "event" not in row]


def training_config(run: Path) -> dict[str, Any]:
    """The run's config.yaml as plain dictionaries."""
    config = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def verdicts(account: Ledger, measured: dict[tuple[str, str], dict[str, Any]], config: dict[str, Any]) -> list[Verdict]:
    """The expectations of the demo on its default clips, and its results."""

    def psnr(weights: str, split: str) -> float:
        return float(measured[weights, split]["metrics"]["psnr"]["value"])

    before, after, trained = psnr("untrained", "val"), psnr("trained", "val"), psnr("trained", "train")
    share = 1 - config["gan"]["start"] / config["steps"]
    return [
        Verdict("source rows accounted for", f"{account.accounted} of {account.input}", "all",
                account.accounted == account.input),
        Verdict("held-out windows, gain over the untrained model",
                f"{after - before:+.1f} dB ({before:.1f} to {after:.1f} dB)", f"at least {HELD_OUT_GAIN:g} dB",
                after - before >= HELD_OUT_GAIN),
        Verdict("windows it trained on", f"{trained:.1f} dB", f"more than {TRAINED_PSNR:g} dB",
                trained > TRAINED_PSNR),
        Verdict("discriminator on", f"{share:.0%} of the steps", "at least a third", share >= DISCRIMINATOR_SHARE),
    ]  # fmt: skip
