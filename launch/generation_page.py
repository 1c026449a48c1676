"""The page of `launch/evaluate_generation.py`: protocol, values, classes, and samples beside their nearest clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_pipeline.report.html import Markup, card, fold, page, section, table, tag, video
from data_pipeline.store.counted import counted
from trainer.generation.shown import Clip

TITLES = {
    "gfvd": "gFVD",
    "frechet_efficientnet_frames": "Frechet distance of frames (EfficientNet-Lite0)",
    "frechet_efficientnet_differences": "Frechet distance of frame differences (EfficientNet-Lite0)",
}
MOST_CLASSES = 20
"""The most classes that a confusion table shows. Of more classes the most frequent confusions are listed."""


def generation_page(report: Mapping[str, Any], protocol: Sequence[str], rows: Sequence[Sequence[Clip]]) -> str:
    """The whole page.

    Args:
        report: what report.json holds.
        protocol: in lines of text.
        rows: a sample, and behind it its nearest training clips.
    """
    cards = [
        card(TITLES[name], f"{entry['value']:.4g}", "lower is better") for name, entry in report["metrics"].items()
    ]
    for entry in report["class_agreement"]:
        share, chance = (f"{100 * entry[key]:.1f} %" for key in ("value", "chance"))
        cards.append(card(f"class agreement of {entry['of']}", share, f"chance {chance}, by {entry['judge']}"))
    parts = [
        tag("h1", "Generated video"),
        tag("div", *cards, class_="cards"),
        section("Protocol", tag("pre", "\n".join(protocol)), *_notes(report)),
        _memorisation(report["memorisation"], rows),
    ]
    if report["class_agreement"]:
        parts.append(section("Classes", *(_confusion(entry) for entry in report["class_agreement"])))
    if report.get("paper"):
        parts.append(_paper(report))
    return page("Generated video", *parts)


def _notes(report: Mapping[str, Any]) -> list[Markup]:
    notes = [f"{name} not computed: {how}" for name, how in report["not_computed"].items()]
    notes += report["remarks"]
    notes += [f"not read: {key}: {reason}" for key, reason in report["unreadable"].items()]
    return [tag("p", note, class_="soft") for note in notes]


def _memorisation(found: Mapping[str, Any], rows: Sequence[Sequence[Clip]]) -> Markup:
    spreads = [("samples", found["samples"])]
    if found["held_out"] is not None:
        spreads.append((f"held-out clips ({found['held_out']['split']})", found["held_out"]))
    cells = [
        [name, part["count"], *(f"{part[key]:.4g}" for key in ("least", "quantile_05", "median"))]
        for name, part in spreads
    ]
    said = "There are no held-out clips, so the distances have no scale."
    if found["as_near_as_05"] is not None:
        said = (
            f"{found['as_near_as_05']} of {counted(found['samples']['count'], 'sample')} lie as near to a training "
            "clip as the nearest 5 % of the held-out clips. About 5 % of new clips do; a generator that repeats its "
            "training clips has many more."
        )
    return section(
        "Nearest training clips",
        tag("p", f"Distance: {found['distance']}. {said}"),
        table(["distance to the nearest", "clips", "least", "5 % lie below", "median"], cells, numeric=range(1, 5)),
        tag("p", "Each row begins with a sample; beside it are its nearest training clips. The nearest are first."),
        *(tag("div", *(_figure(clip) for clip in row), class_="row") for row in rows),
    )


def _figure(clip: Clip) -> Markup:
    return tag("figure", video(clip.mp4, clip.caption), tag("figcaption", clip.caption))


def _confusion(entry: Mapping[str, Any]) -> Markup:
    confusion: Mapping[str, Mapping[str, int]] = entry["confusion"]
    title = f"{entry['of']}, judged by {entry['judge']}"
    judged = sorted({name for found in confusion.values() for name in found})
    if max(len(confusion), len(judged)) <= MOST_CLASSES:
        head = ["class", *(f"as {name}" for name in judged)]
        rows = [[mine, *(found.get(name, 0) for name in judged)] for mine, found in confusion.items()]
        return fold(title, table(head, rows, numeric=range(1, len(head))))
    wrong = [(count, mine, name) for mine, found in confusion.items() for name, count in found.items() if name != mine]
    most = sorted(wrong, key=lambda item: (-item[0], item[1:]))[:MOST_CLASSES]
    return fold(title, table(["class", "taken for", "clips"], [[mine, name, count] for count, mine, name in most]))


def _paper(report: Mapping[str, Any]) -> Markup:
    ours = report["metrics"].get("gfvd")
    rows: list[list[object]] = [[method, f"{value:g}", "paper"] for method, value in report["paper"]["gfvd"].items()]
    rows.append(["this model", f"{ours['value']:.4g}" if ours else None, "measured here" if ours else "not computed"])
    return section(
        "Beside the paper",
        table(["method", "gFVD", "from"], rows, numeric=[1]),
        tag("p", f"{report['paper']['source']}. What differs here: {'; '.join(report['paper']['differences'])}."),
    )
