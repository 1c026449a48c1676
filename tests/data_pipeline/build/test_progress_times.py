"""What the progress line says, against sums made by hand."""

from __future__ import annotations

import io

import pytest

from data_pipeline.build import progress
from data_pipeline.build.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (2 * 3600 + 10 * 60 + 59, "2 h 10 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d 0 h"),
        (3 * 86400 + 4 * 3600 + 3599, "3 d 4 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_rest_is_foretold_from_what_this_run_has_done() -> None:
    """Ten units, four of them from an earlier run; 60 rows to do. 20 rows in 30 s leave 40 rows, which is 60 s."""
    line = Progress(units=10, done=4, rows=60, interval_s=5.0, stream=io.StringIO())
    assert line.line(3.0) == "units 4/10  rows 0/60  clips 0  0.0 clips/s  starting"
    line.add(rows=8, clips=21)
    line.add(rows=12, clips=24)
    assert line.line(30.0) == "units 6/10  rows 20/60  clips 45  1.5 clips/s  1 min 0 s left"
    line.add(rows=40, clips=0)
    assert line.line(90.0).endswith("units 7/10  rows 60/60  clips 45  0.5 clips/s  0 s left")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "interval"), [(io.StringIO(), 5.0), (Terminal(), 0.5)])
def test_a_line_comes_when_it_is_time_and_at_the_end(
    stream: io.StringIO, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    line = Progress(units=1, done=0, rows=4, interval_s=5.0, stream=stream)

    def shown() -> int:
        return stream.getvalue().count("units ")

    line.show()
    assert shown() == 0
    clock[0] += interval - 0.01
    line.show()
    assert shown() == 0
    clock[0] += 0.01
    line.show()
    assert shown() == 1
    line.show()
    assert shown() == 1
    line.add(rows=4, clips=8)
    line.end()
    assert shown() == 2
    assert stream.getvalue().endswith("clips 8  " + f"{8 / interval:.1f} clips/s  0 s left\n")
    assert line.clips_per_s == pytest.approx(8 / interval)
    assert stream.getvalue().count("\n") == (1 if stream.isatty() else 2), "a terminal's line rewrites itself"
