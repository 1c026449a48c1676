"""The progress line against values worked out by hand."""

import io

import pytest

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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (3 * 86400 + 4 * 3600, "3 d 4 h")],
)
def test_durations_have_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
