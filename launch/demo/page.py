"""The demo's report: source rows, metrics and pictures, in one HTML file that loads nothing from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.dataset.ledger import Ledger
from data_pipeline.report.html import Chart, Markup, Series, card, fold, image, join, page, section, table, tag
from launch.demo.commands import Record
from launch.demo.findings import RowStory, Verdict

if TYPE_CHECKING:
    from launch.demo.latents import Latents

COLUMNS = ("source", "reconstruction", "structure only", "dynamics only")


@dataclass
class Strip:
    """One window as a moving picture of the four COLUMNS."""

    title: str
    held_out: bool
    psnr: float
    png: bytes


@dataclass
class Demo:
    """Everything the page shows."""

    source: str
    default_source: bool
    account: Ledger
    rows: list[RowStory]
    measured: dict[tuple[str, str], dict[str, Any]]
    verdicts: list[Verdict]
    training: list[dict[str, Any]]
    config: dict[str, Any]
    config_text: str
    strips: list[Strip]
    latents: Latents
    records: list[Record]
    seconds: float


def render(demo: Demo) -> str:
    """The page as one HTML document."""
    model = demo.config["model"]
    clip = f"{model['frames']} x {model['image_size']} x {model['image_size']}"
    intro = tag(
        "p",
        f"A small VidTwin for clips of {clip}, trained from scratch on {demo.source} by the commands listed below. "
        "VidTwin splits a clip into a structure latent (what is there, how it moves as a whole) and a dynamics latent "
        "(what changes fast); it compresses a clip to "
        f"{100 * demo.measured['trained', 'val']['compression_rate']:.2f} % of its numbers.",
    )
    return page(
        "VidTwin demo",
        tag("h1", "VidTwin demo"),
        intro,
        _cards(demo),
        section("Pictures", *_pictures(demo.strips)),
        section("Measured", _metrics(demo)),
        section("Latents", *_latents(demo.latents)),
        section("Training", _curves(demo.training, demo.config)),
        section("Where every source row went", _account(demo)),
        section("Commands", _commands(demo)),
        section("Configuration", fold("every setting of the training run", tag("pre", demo.config_text))),
    )


def _cards(demo: Demo) -> Markup:
    cards = [
        card(
            item.what,
            item.result.split(" (")[0],
            f"expected: {item.expected}",
            item.met if demo.default_source else None,
        )
        for item in demo.verdicts
    ]
    return tag("div", *cards, card("all stages together", f"{demo.seconds:.0f} s"), class_="cards")


def _pictures(strips: Sequence[Strip]) -> list[Markup]:
    explanation = tag(
        "p",
        "Each row is one window, playing. Structure only and dynamics only decode one latent with the other left out: "
        "together they are not meant to add up to the picture.",
    )
    heads = tag("div", *(tag("span", name) for name in COLUMNS), class_="heads",
                style="grid-template-columns: repeat(4, 1fr)")  # fmt: skip
    parts = [explanation]
    for held_out, title in ((True, "Held out: never seen in training"), (False, "Trained on")):
        chosen = [strip for strip in strips if strip.held_out is held_out]
        if chosen:
            figures = [
                tag(
                    "figure",
                    image(strip.png, "image/png", f"{strip.title}: {', '.join(COLUMNS)}"),
                    tag("figcaption", f"{strip.title}: {strip.psnr:.1f} dB"),
                )
                for strip in chosen
            ]
            parts += [tag("h3", title), tag("div", heads, *figures, class_="strips")]
    return parts


def _latents(latents: Latents) -> list[Markup]:
    head = ["part", "shape", "means of its channels", "deviations", "largest rounding error"]
    rows = [
        [
            part.name.replace("_", " "),
            " x ".join(map(str, part.shape)),
            f"{part.mean[0]:.3f} to {part.mean[1]:.3f}",
            f"{part.deviation[0]:.3f} to {part.deviation[1]:.3f}",
            f"{part.rounding:.1e}",
        ]
        for part in latents.parts
    ]
    explanation = (
        f"{latents.windows} windows are stored as latents of {latents.dtype}, {latents.bytes / 1e6:.2f} MB with "
        "captions and descriptions. The statistics are those of the training split, by which a generator normalises "
        "them. Dynamics w and h are the two halves of the dynamics latent, along the width and along the height."
    )
    nearest = (
        "Each row begins with a held-out window, decoded from its latents. Beside it are the training windows whose "
        "normalised latents lie nearest, so they show what the latents take for alike."
    )
    figures = [
        tag(
            "figure",
            image(item.png, "image/png", f"{item.title} and its nearest training windows"),
            tag("figcaption", f"{item.title}; nearest: {_listed(item.found, item.distances)}"),
        )
        for item in latents.neighbours
    ]
    return [
        tag("p", explanation),
        table(head, rows),
        tag("h3", "Nearest training windows"),
        tag("p", nearest),
        tag("div", *figures, class_="strips"),
    ]


def _listed(names: Sequence[str], distances: Sequence[float]) -> str:
    return "; ".join(f"{name} ({distance:.2f})" for name, distance in zip(names, distances, strict=True))


def _metrics(demo: Demo) -> Markup:
    head = ["windows", "weights", "number", "PSNR (dB)", "SSIM", "LPIPS", "ST-LPIPS", "FVD"]
    rows: list[list[object]] = []
    for split, name in (("val", "held out"), ("train", "trained on")):
        for weights in ("untrained", "trained"):
            result = demo.measured[weights, split]
            values = result["metrics"]
            rows.append([name, weights, result["windows"], *(
                f"{values[metric]['value']:.{digits}f}" if metric in values else "not computed"
                for metric, digits in (("psnr", 2), ("ssim", 3), ("lpips", 3), ("st_lpips", 4), ("fvd", 1))
            )])  # fmt: skip
    missing = demo.measured["trained", "val"]["not_computed"]
    notes = [
        tag("p", f"{name.upper().replace('_', '-')} is not computed: {how}.", class_="soft")
        for name, how in missing.items()
    ]
    checks = [
        [
            item.what,
            item.result,
            item.expected,
            tag("span", "yes" if item.met else "no", class_="good" if item.met else "bad"),
        ]
        for item in demo.verdicts
    ]
    return join(
        table(head, rows, numeric=range(2, 8)),
        tag("p", "Untrained is the same architecture with its random first weights. Windows lie side by side; PSNR and "
                 "SSIM are means over windows of the mean over a window's frames, with posterior means as latents."),
        *notes,
        tag("h3", "Expected of the default clips" + ("" if demo.default_source else " (these are others)")),
        table(["what", "found", "expected", "met"], checks),
    )  # fmt: skip


def _curves(rows: list[dict[str, Any]], config: dict[str, Any]) -> Markup:
    steps = [row["step"] for row in rows]

    def chart(title: str, names: dict[str, str], note: str, log: bool = False) -> Markup:
        series = [Series(label, steps, [row.get(name) for row in rows]) for name, label in names.items()]
        return Chart(title, series, note, config["gan"]["start"], "discriminator on", log).render()

    return tag(
        "div",
        chart("PSNR while training (dB)", {"batch_psnr": "PSNR"},
              "Of the training batches, with sampled latents and random crops, so below the evaluation's."),
        chart("Reconstruction error", {"l1": "mean absolute error"}, "Mean |x - x'| on [-1, 1]."),
        chart("KL divergence", {"kl_loss": "KL"},
              "All three posteriors, nats a clip, on a logarithmic axis.", log=True),
        chart("Discriminator's loss", {"disc_loss": "hinge loss"}, "1 is chance, 0 tells real from reconstructed."),
        chart("Logits", {"logits_real": "real", "logits_fake": "reconstructed"},
              "The discriminator wants them apart, the generator together."),
        chart("Learning rates", {"lr_generator": "generator", "lr_discriminator": "discriminator"},
              "Warm-up, then cosine."),
        class_="charts",
    )  # fmt: skip


def _account(demo: Demo) -> Markup:
    account = demo.account
    counts: list[list[object]] = [
        ["source rows", account.input],
        ["committed (gave at least one clip)", account.committed],
    ]
    counts += [[f"rejected: {reason.replace('_', ' ')}", n] for reason, n in sorted(account.rejected.items()) if n]
    counts += [[f"quarantined: {error.replace('_', ' ')}", n] for error, n in sorted(account.quarantined.items()) if n]
    counts += [["clips", f"{account.clips} ({', '.join(f'{n} {name}' for name, n in sorted(account.splits.items()))})"]]
    if account.clips_rejected:
        counts += [["stretches of committed or rejected rows without a clip", sum(account.clips_rejected.values())]]
    counts += [["shards", f"{account.shards} ({account.bytes / 1e6:.1f} MB)"]]
    rows: list[list[object]] = []
    for story in demo.rows:
        shade = {"committed": "good", "quarantined": "bad"}.get(story.fate, "")
        left_out = join(*(tag("div", reason) for reason in story.reasons))
        rows.append([story.row, story.video, _times(story), story.split, story.caption,
                     tag("span", story.fate, class_=shade), story.clips, left_out])  # fmt: skip
    return join(
        table(["", "number"], counts, numeric=[1]),
        tag("p", "Every row of the source is committed, rejected for a reason, or quarantined with an error."),
        table(
            ["row", "video", "time", "split", "caption", "fate", "clips", "what was left out, and why"],
            rows,
            numeric=[0, 6],
        ),
    )


def _times(story: RowStory) -> str:
    if story.start is None and story.end is None:
        return "all"
    begin = f"{story.start or 0:g}"
    return f"from {begin} s" if story.end is None else f"{begin} to {story.end:g} s"


def _commands(demo: Demo) -> Markup:
    rows = [[record.title, tag("code", record.shown), f"{record.seconds:.0f} s"] for record in demo.records]
    return table(["stage", "command", "time"], rows, numeric=[2])
