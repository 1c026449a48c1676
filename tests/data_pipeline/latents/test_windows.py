"""Windows of a clip against the definition of each choice, for all short lengths."""

from __future__ import annotations

from typing import Any

import pytest

from data_pipeline.latents.config import WindowChoice, WindowsConfig
from data_pipeline.latents.windows import window_span, windows_of


def settings(**words: Any) -> dict[str, Any]:
    return WindowsConfig(**words).plan_settings(frames=4, image_size=32)


def starts(frames: int, key: str = "clip", **words: Any) -> list[int]:
    return [window.first_frame for window in windows_of(settings(**words), key, frames)]


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("frames", range(0, 30))
def test_windows_side_by_side_cover_all_that_whole_windows_can(frames: int, stride: int) -> None:
    span = 3 * stride + 1
    assert window_span(settings(frame_stride=stride)) == span
    assert starts(frames, frame_stride=stride) == [n * span for n in range(frames // span)]
    assert starts(frames, frame_stride=stride, choose=WindowChoice.first) == ([0] if frames >= span else [])


def test_a_stride_gives_every_start_that_fits() -> None:
    assert starts(10, choose=WindowChoice.stride, every=3) == [0, 3, 6]
    assert starts(9, choose=WindowChoice.stride, every=3) == [0, 3]
    assert starts(3, choose=WindowChoice.stride, every=1) == []


def test_random_windows_are_different_ones_and_even_over_all_places() -> None:
    words = {"choose": WindowChoice.random, "count": 3, "seed": 5}
    counts = [0] * 10
    for number in range(2000):
        found = starts(13, f"clip{number}", **words)
        assert found == sorted(set(found))
        assert len(found) == 3
        for start in found:
            counts[start] += 1
    # 2000 draws of 3 of 10 places: a mean of 600 with a deviation of 20.5
    assert all(500 < count < 700 for count in counts)
    assert starts(13, "clip1", **words) != starts(13, "clip1", **words | {"seed": 6})
    assert starts(5, "clip", **words) == [0, 1], "fewer places than windows: each place once"


def test_each_window_stands_before_its_mirrored_twin() -> None:
    found = windows_of(settings(mirrored=True), "clip", 9)
    assert [(w.number, w.first_frame, w.mirrored) for w in found] == [
        (0, 0, False),
        (1, 0, True),
        (2, 4, False),
        (3, 4, True),
    ]


def test_a_seed_without_random_windows_does_not_make_other_settings() -> None:
    assert settings(seed=3) == settings(seed=4)


@pytest.mark.parametrize(
    "words",
    [
        {"every": 2},
        {"count": 2},
        {"choose": WindowChoice.stride},
        {"choose": WindowChoice.random},
        {"choose": WindowChoice.random, "count": 1, "every": 1},
    ],
)
def test_settings_that_mean_nothing_together_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"set windows\.(every|count) with windows\.choose=(stride|random)"):
        WindowsConfig(**words)
