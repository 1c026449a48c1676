"""The page on a dataset of shards: ledger, histograms, contact sheets. All text from a manifest is escaped."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_pipeline.dataset.row_fates import COMMITTED, QUARANTINED, REJECTED
from data_pipeline.report.histogram import HistogramChart
from data_pipeline.report.html import Markup, card, image, join, page, section, table, tag
from data_pipeline.report.refusals import Refusal
from data_pipeline.report.survey import AcceptedClip, Survey
from data_pipeline.report.tally import Tally

_LONGEST = 240  # characters of a caption, name or detail that are shown


def shards_page(survey: Survey) -> str:
    """The whole HTML document. It loads nothing from outside."""
    return page(
        f"Dataset {_shown(survey.name)}",
        _head(survey),
        _ledger(survey),
        _charts(survey),
        _accepted(survey),
        *_refused(survey),
    )


def _head(survey: Survey) -> Markup:
    ledger, units = survey.ledger, survey.plan.units
    state = "complete" if survey.complete else "not finalized: the numbers cover the committed units only"
    rows = survey.plan.rows
    balanced = ledger.input == ledger.accounted
    return join(
        tag("h1", "Dataset of shards"),
        tag("p", _shown(survey.name), class_="soft"),
        tag(
            "div",
            card("units committed", f"{survey.committed:,} of {units:,}", state, survey.complete),
            card("source rows", f"{ledger.input:,}", f"of {rows:,} in the plan"),
            card("clips", f"{ledger.clips:,}", f"{ledger.shards:,} shards, {ledger.bytes / 1e6:,.1f} MB"),
            card(
                "rows accounted for",
                f"{ledger.accounted:,}",
                "the ledger balances" if balanced else "the ledger does not balance: run verify_shards.py",
                balanced,
            ),
            class_="cards",
        ),
    )


def _ledger(survey: Survey) -> Markup:
    ledger = survey.ledger

    def rows(counts: Counter[str], fate: str) -> list[list[object]]:
        named = sorted(((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0]))
        return [[fate, _shown(name), f"{count:,}", _share(count, ledger.input)] for name, count in named]

    body: list[list[object]] = [
        [COMMITTED, "", f"{ledger.committed:,}", _share(ledger.committed, ledger.input)],
        *rows(ledger.rejected, REJECTED),
        *rows(ledger.quarantined, QUARANTINED),
        ["all source rows", "", f"{ledger.input:,}", ""],
    ]
    parts = [table(["fate of the row", "reason", "rows", "share"], body, numeric=(2, 3))]
    stretches = sum(ledger.clips_rejected.values())
    if stretches:
        lost = [[_shown(name), f"{count:,}"] for name, count in ledger.clips_rejected.most_common() if count]
        parts.append(tag("p", f"{stretches:,} stretches gave no clip; their rows may have given others:"))
        parts.append(table(["reason", "stretches"], lost, numeric=(1,)))
    if ledger.splits:
        parts.append(table(["split", "clips"], [[n, f"{c:,}"] for n, c in sorted(ledger.splits.items())], numeric=(1,)))
    return section("Ledger", *parts)


def _share(count: int, whole: int) -> str:
    return f"{100 * count / whole:.2f} %" if whole else ""


def _charts(survey: Survey) -> Markup:
    every = "every clip"
    drawn = f"{survey.drawn:,} clips drawn at random" if survey.drawn < survey.ledger.clips else every
    charts = [
        _chart("Clip duration, seconds", survey.seconds, every),
        _chart("Source frame rate, fps", survey.source_fps, drawn),
        _chart("Source size, short side in pixels", survey.source_side, drawn),
        _chart("Motion, mean change of luma in levels of 255", survey.motion, drawn),
        _chart("Caption length, characters", survey.captions, "every source row with a caption, refused rows too"),
        _chart("Stored video, bytes a clip", survey.video_bytes, every),
    ]
    note = "Values are counted to three digits. A logarithmic axis is used where the range is wide."
    return section("Distributions", tag("p", note, class_="soft"), tag("div", *charts, class_="charts"))


def _chart(title: str, tally: Tally, of: str) -> Markup:
    bins = tally.histogram()
    if bins is None:
        empty = tag("p", "no values were recorded", class_="soft")
        return tag("figure", tag("strong", title), empty, tag("figcaption", of))
    low, median, high = (tally.quantile(share) for share in (0.0, 0.5, 1.0))
    note = f"{of}: {tally.total:,} values, smallest {low:,g}, median {median:,g}, largest {high:,g}"
    return HistogramChart(title, bins.edges, bins.counts, note, log=bins.log).render()


def _accepted(survey: Survey) -> Markup:
    shown = f"{len(survey.accepted):,} of {survey.ledger.clips:,} clips, drawn at random"
    note = tag("p", f"{shown}; first, middle and last frame, decoded from the shards.", class_="soft")
    return section(
        "Accepted clips", note, tag("div", *(_accepted_clip(clip) for clip in survey.accepted), class_="sheet")
    )


def _accepted_clip(clip: AcceptedClip) -> Markup:
    described = clip.description
    facts = (
        f"{described['start']:.2f} to {described['end']:.2f} s, {described['width']} x {described['height']}, "
        f"{described['split']}; {_measured(described['measures'])}"
    )
    lines = [tag("bdi", _shown(clip.caption) or "(no caption)"), tag("bdi", _shown(described["id"])), facts]
    return _figure(clip.picture, f"no picture: {clip.no_picture}", lines)


def _refused(survey: Survey) -> list[Markup]:
    ledger = survey.ledger
    pages = []
    for kind, title in ((REJECTED, "Rejected"), (QUARANTINED, "Quarantined")):
        parts: list[Markup] = []
        for (group, reason), items in survey.refused.items():
            if group != kind:
                continue
            rows = (ledger.rejected if kind == REJECTED else ledger.quarantined)[reason]
            stretches = ledger.clips_rejected[reason] if kind == REJECTED else 0
            count = f"{rows:,} rows" + (f", {stretches:,} stretches" if stretches else "")
            parts.append(tag("h3", f"{_shown(reason)}: {count}"))
            parts.append(tag("div", *(_refusal(item) for item in items), class_="sheet"))
        pages.append(section(title, *(parts or [tag("p", "none", class_="soft")])))
    return pages


def _refusal(item: Refusal) -> Markup:
    begin, end = ("" if time is None else f"{time:.2f}" for time in (item.start, item.end))
    where = f"row {item.row}" + (f", {begin or '0.00'} to {end or 'the end'} s" if begin or end else "")
    lines: list[object] = [tag("b", _shown(item.reason), class_="bad")]
    lines += [_measured(item.measured)] if item.measured else []
    lines += [tag("bdi", _shown(item.detail))] if item.detail else []
    lines.append(where)
    lines += [tag("bdi", _shown(name)) for name in dict.fromkeys((item.id, item.video)) if name]
    lines += [tag("bdi", _shown(item.caption))] if item.caption else []
    return _figure(item.picture, item.no_picture, lines)


def _figure(picture: bytes | None, no_picture: str, lines: Sequence[object]) -> Markup:
    top = tag("div", no_picture, class_="none") if picture is None else image(picture, "image/jpeg", "frames")
    caption = join(*(part for line in lines for part in (line, Markup("<br>"))))
    return tag("figure", top, tag("figcaption", caption))


def _measured(values: dict[str, Any]) -> str:
    """The name and value of each; numbers have four digits."""
    parts = (
        f"{name} {value:.4g}" if isinstance(value, int | float) else f"{name} {value}" for name, value in values.items()
    )
    return _shown(", ".join(parts))


def _shown(value: str) -> str:
    """Text that strangers wrote, on one line, without control characters, and of a bounded length.

    The caller puts it into a `bdi` element, so that it cannot change the writing direction of the text around it.
    """
    hidden = {"Cc", "Cs", "Zl", "Zp"}
    clean = "".join(" " if c in "\r\n\t" else "\ufffd" if unicodedata.category(c) in hidden else c for c in value)
    return clean if len(clean) <= _LONGEST else clean[:_LONGEST] + " [...]"
