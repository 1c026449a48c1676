"""The progress line against values worked out by hand."""

import io

import pytest

from data_pipeline.build import progress as progress_module
from data_pipeline.build.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("items_name", ["clips", "latents"])
def test_the_line_counts_this_run_and_estimates_the_rest(items_name: str) -> None:
    progress = Progress(10, 4, 30, 3600.0, items_name=items_name, stream=io.StringIO())
    assert progress.line(5.0) == f"units 4/10  rows 0/30  {items_name} 0  0.0 {items_name}/s  starting"
    progress.add(rows=10, items=12)
    # 10 of 30 rows took 60 s, so the other 20 take 120 s
    assert progress.line(60.0) == f"units 5/10  rows 10/30  {items_name} 12  0.2 {items_name}/s  2 min 0 s left"


def test_a_terminal_gets_one_line_that_is_rewritten_and_a_file_gets_several() -> None:
    for stream, begin, end in ((Terminal(), "\r\x1b[K", "\n"), (io.StringIO(), "", "")):
        progress = Progress(1, 0, 1, 3600.0, items_name="clips", stream=stream)
        progress.show()
        assert stream.getvalue() == "", "it is not time yet"
        progress.end()
        assert stream.getvalue().startswith(f"{begin}units 0/1")
        assert stream.getvalue().endswith(f"starting{end or chr(10)}")


@pytest.mark.parametrize(("stream", "interval"), [(io.StringIO(), 5.0), (Terminal(), 0.5)])
def test_a_line_comes_when_it_is_time_and_at_the_end(
    stream: io.StringIO, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: clock[0])
    line = Progress(units=1, done=0, rows=4, interval_s=5.0, items_name="clips", stream=stream)

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
    line.add(rows=4, items=8)
    line.end()
    assert shown() == 2
    assert stream.getvalue().endswith("clips 8  " + f"{8 / interval:.1f} clips/s  0 s left\n")
    assert line.items_per_s == pytest.approx(8 / interval)
    assert stream.getvalue().count("\n") == (1 if stream.isatty() else 2), "a terminal's line rewrites itself"


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
