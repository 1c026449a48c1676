"""What the line of progress of launch/evaluate.py says of the time that is left."""

from __future__ import annotations

import pytest

from launch import evaluation_report
from trainer.evaluation.run import Done


def test_the_rest_takes_as_long_as_this_run_has_taken_for_as_much(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two models; an earlier run did half of the first one. This run has taken 100 s for a quarter of the first one.

    So one model takes 400 s, and left are a quarter of the first one and the whole second one: 500 s.
    """
    clock = [1000.0]
    monkeypatch.setattr(evaluation_report.time, "monotonic", lambda: clock[0])
    show = evaluation_report.progress_line(["a", "b"], 1)
    show(0, 0, Done(windows=50, share=0.5, before=0.5))
    assert capsys.readouterr().err == "", "the first line comes after half a minute"
    clock[0] += 100
    show(0, 0, Done(windows=75, share=0.75, before=0.5))
    assert capsys.readouterr().err == "model 1 of 2, 75 windows, 0.25 windows/s, 38 %, 8 min 20 s left\n"
    clock[0] += 500
    show(1, 0, Done(windows=100, share=1.0, before=0.0))
    assert capsys.readouterr().err.endswith("100 %, 0 s left\n")
