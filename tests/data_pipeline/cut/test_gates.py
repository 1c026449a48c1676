from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig, Letterbox
from data_pipeline.cut.cutter import cut_clips
from data_pipeline.cut.gates import measure_pictures, perceptual_hash, picture_problem
from data_pipeline.cut.letterbox import Bars, bar_share, bar_sizes
from data_pipeline.source.config import CaptionConfig
from data_pipeline.source.row_rules import caption_problem
from tests.data_pipeline.cut.videos import picture, write_video


def greys(count: int = 12, scene: int = 0) -> np.ndarray:
    return np.stack([picture(n, 64, 64, scene).mean(axis=2).astype(np.uint8) for n in range(count)])


def test_measures_against_closed_forms() -> None:
    frames = np.full((5, 64, 64), 100, np.uint8)
    frames[2:] = 110  # one change of 10 levels in four steps
    measured = measure_pictures(frames, [1.0, 7.5, 2.0, 0.0])
    assert measured == {"black": 0.0, "frozen": 0.75, "letterbox": 0.0, "motion": 2.5, "change": 7.5}
    frames[:2] = 5
    assert measure_pictures(frames, [])["black"] == pytest.approx(0.4)


@pytest.mark.parametrize(("level", "black"), [(20, 1.0), (21, 0.0)])
def test_a_frame_is_black_up_to_its_level_in_98_of_100_pixels(level: int, black: float) -> None:
    frames = np.zeros((4, 20, 20), np.uint8)
    frames[:, 0, :12] = level  # 3 % of them
    assert measure_pictures(frames, [])["black"] == black
    frames[:] = 0
    frames[:, 0, :4] = 255  # 1 %: a logo, a clock
    assert measure_pictures(frames, [])["black"] == 1.0


@pytest.mark.parametrize(("pixels", "frozen"), [(40, 1.0), (41, 0.0)])
def test_a_frame_repeats_the_one_before_up_to_a_tenth_of_a_level(pixels: int, frozen: float) -> None:
    frames = np.full((2, 20, 20), 90, np.uint8)
    frames[1].reshape(-1)[:pixels] += 1
    assert measure_pictures(frames, [])["frozen"] == frozen


@pytest.mark.parametrize(("level", "rows"), [(12, 8), (13, 0)])
def test_a_bar_is_darker_than_a_black_picture(level: int, rows: int) -> None:
    image = np.full((64, 64), 90, np.uint8)
    image[:8] = level
    assert bar_sizes(image) == Bars(top=rows)


@pytest.mark.parametrize("dark", [0, 2, 4])
def test_bars_are_what_stays_black_in_every_frame(dark: int) -> None:
    """One frame with wide dark borders, be it the first, does not make them bars."""
    frames = np.full((5, 64, 64), 90, np.uint8)
    frames[:, :8] = 3
    frames[dark, :24] = frames[dark, :, :16] = 3
    assert measure_pictures(frames, [])["letterbox"] == pytest.approx(8 / 64)


def test_bars_are_measured_in_rows_and_columns() -> None:
    image = np.full((64, 64), 90, np.uint8)
    image[:8] = image[-4:] = 3
    image[:, :16] = 10
    assert bar_sizes(image) == Bars(top=8, bottom=4, left=16, right=0)
    assert bar_share(image) == pytest.approx(1 - 52 * 48 / 64**2)
    assert bar_share(np.zeros((64, 64), np.uint8)) == 0.0  # wholly black is the black gate's business


@pytest.mark.parametrize(
    ("measure", "value", "reason"),
    [
        ("black", 0.2, "black"),
        ("frozen", 0.6, "frozen"),
        ("letterbox", 0.06, "letterbox"),
        ("motion", 0.01, "motion"),
        ("motion", 70.0, "motion"),
        ("black", 0.1, None),
        ("frozen", 0.5, None),
        ("letterbox", 0.05, None),
        ("motion", 0.05, None),
        ("motion", 60.0, None),
        ("change", 60.0, None),
        ("change", 61.0, "cut_inside"),
        ("change", 59.0, None),
    ],
)
def test_each_gate_refuses_on_its_own_side_of_the_threshold(measure: str, value: float, reason: str | None) -> None:
    fine = {"black": 0.0, "frozen": 0.0, "letterbox": 0.0, "motion": 5.0, "change": 10.0}
    assert picture_problem(fine, ClipConfig()) is None
    assert picture_problem(fine | {measure: value}, ClipConfig()) == reason


def made(path: Path, kind: str) -> Path:
    def image(n: int) -> np.ndarray:
        if kind == "black":
            return np.full((256, 320, 3), 3, np.uint8)
        full = picture(0 if kind == "frozen" else n)
        if kind == "letterbox":
            full[:24] = full[-24:] = 0
        if kind == "noise":
            full = np.random.default_rng(n).integers(0, 256, full.shape, dtype=np.uint8)
        return full

    return write_video(path, [image(n) for n in range(60)])


@pytest.mark.parametrize(
    ("kind", "settings", "reason", "measure", "low", "high"),
    [
        ("black", {}, "black", "black", 1.0, 1.0),
        ("frozen", {}, "frozen", "frozen", 0.8, 1.0),
        ("letterbox", {}, "letterbox", "letterbox", 0.15, 0.22),
        ("noise", {"crf": 51, "max_motion": 255.0}, "encode_loss", "psnr", 5.0, 20.0),
        ("noise", {"max_motion": 3.0}, "motion", "motion", 3.0, 60.0),
    ],
)
def test_videos_made_to_fail_a_gate_fail_it_with_its_value(
    tmp_path: Path, kind: str, settings: dict[str, Any], reason: str, measure: str, low: float, high: float
) -> None:
    result = cut_clips(made(tmp_path / "v.mp4", kind), config=ClipConfig(**settings))
    assert [item.reason for item in result.rejected] == [reason]
    assert not result.clips
    assert low <= float(result.rejected[0].measured[measure]) <= high


def test_letterbox_can_be_kept_or_cut_away(tmp_path: Path) -> None:
    path = made(tmp_path / "v.mp4", "letterbox")
    (kept,) = cut_clips(path, config=ClipConfig(letterbox=Letterbox.keep)).clips
    assert kept.measures["letterbox"] > 0.15
    settings: dict[str, Any] = {"letterbox": Letterbox.crop, "min_short_side": 128}
    (cropped,) = cut_clips(path, config=ClipConfig(**settings)).clips
    assert cropped.measures["letterbox"] == 0.0
    assert (cropped.height, cropped.width) == (256, 256)


def test_perceptual_hash_survives_what_copies_suffer_and_tells_scenes_apart() -> None:
    def distance(a: np.ndarray, b: np.ndarray) -> int:
        return (int(perceptual_hash(a), 16) ^ int(perceptual_hash(b), 16)).bit_count()

    original = greys()
    noisy = np.clip(original + np.random.default_rng(0).normal(0, 4, original.shape), 0, 255).astype(np.uint8)
    brighter = np.clip(original * 1.1 + 5, 0, 255).astype(np.uint8)
    assert distance(original, noisy) <= 4
    assert distance(original, brighter) <= 4
    assert distance(original, greys(14)[2:]) <= 8
    scenes = [
        np.stack([picture(n, 64, 64, scene=s).mean(axis=2).astype(np.uint8) for n in range(12)]) for s in (1, 2, 3)
    ]
    assert min(distance(original, other) for other in scenes) >= 16
    assert len(perceptual_hash(original)) == 16


def test_perceptual_hash_is_the_documented_formula() -> None:
    """Hashes lie in datasets and are compared over builds, so every bit of them must stay. Here in plain NumPy."""
    k = np.arange(32)
    basis = np.cos(np.pi * (2 * k + 1) * k[:, None] / 64) * np.where(k[:, None] == 0, 1, 2**0.5) / 32**0.5  # DCT-II
    light = np.zeros((5, 64, 64), np.uint8)
    light[:, :2, 2:4] = 255  # one light in the night: the mean brightness is then less than the median
    noise = [np.random.default_rng(seed).integers(0, 256, (5, 64, 64), dtype=np.uint8) for seed in range(20)]
    for frames in (light, *noise):
        small = frames.astype(float).mean(axis=0).reshape(32, 2, 32, 2).mean(axis=(1, 3))
        low = (basis @ small @ basis.T)[:8, :8].ravel()
        bits = "".join("1" if value > np.median(low[1:]) else "0" for value in low)
        assert perceptual_hash(frames) == f"{int(bits, 2):016x}"


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        (None, "caption_missing"),
        ("  \n", "caption_missing"),
        ("a", "caption_too_short"),
        (" ab ", None),
        ("x" * 41, "caption_too_long"),
        ("x" * 40, None),
        ("private \ue000 use", "caption_encoding"),
        ("half a \ud83d pair", "caption_encoding"),
        ("abc-------", None),  # three letters of ten characters
        ("abc--------", "caption_no_text"),
        ("broken \ufffd text", "caption_encoding"),
        ("bell \x07", "caption_encoding"),
        ("ein Hund läuft, 一只狗在跑", None),
        ("12:45 --- 1/2", "caption_no_text"),
        ("two\nlines", None),
    ],
)
def test_caption_gate(caption: str | None, reason: str | None) -> None:
    problem = caption_problem(caption, CaptionConfig(min_characters=2, max_characters=40))
    assert (problem[0] if problem else None) == reason


def test_marks_above_and_below_letters_are_of_the_script() -> None:
    """Three of the six characters of Hindi's name for itself are vowel signs."""
    assert caption_problem("हिन्दी", CaptionConfig(min_letters=0.9)) is None


def test_a_caption_may_be_optional() -> None:
    assert caption_problem("", CaptionConfig(required=False)) is None


def test_caption_limits_must_fit_together() -> None:
    with pytest.raises(ValueError, match=r"caption\.min_characters=5"):
        CaptionConfig(min_characters=5, max_characters=4)
