"""The page of generated clips: each beside the nearest training clip, and beside the reconstruction of that clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_pipeline.report.html import Chart, Markup, Series, card, image, page, section, table, tag
from data_pipeline.store.counted import counted
from launch.demo.commands import Record
from launch.demo.findings import Verdict

if TYPE_CHECKING:
    from launch.demo.nearest import Generated

COLUMNS = ("generated", "nearest training clip", "reconstruction of that clip")
SCALE = 2
"""Each pixel of a clip is drawn so many times as large."""


@dataclass
class Results:
    """Everything the page shows."""

    found: Sequence[Generated]
    verdicts: Sequence[Verdict]
    training: Sequence[dict[str, Any]]  # rows of the diffusion's metrics.jsonl
    default_source: bool  # the expectations are those of the default clips
    parameters: int  # of the DiT
    fps: float
    records: Sequence[Record]

    @property
    def seconds(self) -> float:
        """Seconds that all commands took together."""
        return sum(record.seconds for record in self.records)


def render(results: Results) -> str:
    """The page as one HTML document."""
    clips = counted(len(results.found), "new clip")
    nearest = counted(len({item.nearest for item in results.found}), "different training clip")
    intro = (
        f"A diffusion transformer of {results.parameters:,} parameters learnt the latents of the demo's clips, and "
        f"made {clips} from noise. To these, {nearest} came nearest. The demo has seconds of video, so the network "
        "learns its clips by heart. The page shows that the whole way works, not how well it works with many videos."
    )
    cards = [card(item.what, item.result, f"expected: {item.expected}", item.met if results.default_source else None)
             for item in results.verdicts]  # fmt: skip
    return page(
        "VidTwin demo: generated clips",
        tag("h1", "VidTwin demo: generated clips"),
        tag("p", intro),
        tag("div", *cards, card("all stages together", f"{results.seconds:.0f} s"), class_="cards"),
        section("Clips", *_clips(results)),
        section("Measured", _measured(results.found)),
        section("Training", _curve(results.training)),
        section("Commands", *_commands(results.records)),
    )


def _clips(results: Results) -> list[Markup]:
    from trainer.evaluation.pictures import animated_png, side_by_side  # late: it loads the codecs
    from trainer.evaluation.reconstruction import to_frames

    heads = tag("div", *(tag("span", name) for name in COLUMNS), class_="heads",
                style="grid-template-columns: repeat(3, 1fr)")  # fmt: skip
    figures = []
    for number, item in enumerate(results.found):
        png = animated_png(side_by_side([to_frames(video) for video in item.videos]), results.fps, SCALE)
        asked = f"{item.asked}, " if item.asked else ""
        caption = (
            f"{asked}number {number}: {item.psnr:.1f} dB to {item.nearest}, whose reconstruction has "
            f"{item.reconstruction:.1f} dB"
        )
        figures.append(tag("figure", image(png, "image/png", caption), tag("figcaption", caption)))
    explanation = (
        "The nearest training clip is the one with the smallest squared error among all windows that the diffusion "
        "learnt from. The autoencoder's own reconstruction of that clip stands beside it, "
        "because no generated clip can be sharper than what the autoencoder can show."
    )
    return [tag("p", explanation), tag("div", heads, *figures, class_="strips", style="max-width: 480px")]


def _measured(found: Sequence[Generated]) -> Markup:
    head = ["asked for", "nearest is of", "nearest training clip", "generated, dB", "reconstruction, dB", "difference"]
    rows = [
        [item.asked or None, item.label or None, item.nearest, f"{item.psnr:.1f}", f"{item.reconstruction:.1f}",
         f"{item.psnr - item.reconstruction:+.1f}"]
        for item in found
    ]  # fmt: skip
    return table(head, rows, numeric=(3, 4, 5))


def _curve(training: Sequence[dict[str, Any]]) -> Markup:
    steps = [row["step"] for row in training]
    names = (("loss_structure", "structure"), ("loss_dynamics", "dynamics"))
    series = [Series(name, steps, [row.get(term) for row in training]) for term, name in names]
    return Chart("error of the predicted latents", series, "Mean square, of normalised latents.", log=True).render()


def _commands(records: Sequence[Record]) -> list[Markup]:
    return [tag("pre", "\n".join(f"$ {record.shown}    # {record.seconds:.0f} s" for record in records))]
