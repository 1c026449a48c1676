"""The pixels of encoded windows, and the page that shows generated clips beside them."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from launch.demo.commands import Record
from launch.demo.findings import Verdict
from launch.demo.generated_page import Results, render
from launch.demo.nearest import Generated, decibels, windows_of
from tests.launch.conftest import real_shards
from trainer.evaluation.shard_source import ShardSource

__all__ = ["real_shards"]


def test_windows_have_the_pixels_that_an_evaluation_measures(real_shards: Path) -> None:
    """An evaluation takes windows side by side, so those that begin at the frames 0 and 8 of a clip are known."""
    known = {(window.source, window.start): window for window in ShardSource(str(real_shards), "val", 8, 64).windows()}
    clip = next(source for source, start in known if start == 8)
    keys = [f"{clip}-f{place}" for place in ("000000", "000008", "000004", "000008m")]
    first, second, between, mirrored = windows_of(keys, real_shards, "val", 8, 64)
    assert first.equal(known[clip, 0].video)
    assert second.equal(known[clip, 8].video)
    assert between.equal(torch.cat([first[:, 4:], second[:, :4]], dim=1))
    assert mirrored.equal(second.flip(-1))


def test_decibels_of_a_constant_error() -> None:
    one = torch.full((3, 4, 8, 8), 0.5)
    assert abs(decibels(one, one + 0.1) - 20) < 1e-4


def test_the_page_shows_each_clip_between_its_numbers() -> None:
    clip = torch.rand(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    item = Generated("a<b", "key-f000002m", "c", (clip, clip, clip), 17.04, 19.01)
    rows = [{"step": step, "loss_structure": 1.0 / step, "loss_dynamics": 2.0 / step} for step in (1, 2)]
    record = Record("new clips", "python launch/sample.py", 3.0, finished=True)
    verdict = Verdict("decibels below", "2.0 dB", "at most 3 dB", met=True)
    page = render(Results([item, item], [verdict], rows, True, 1234, 8.0, [record]))
    assert page.count("<img ") == 2
    assert not re.search(r'(src|href)="(?!data:)', page)
    for text in ("a&lt;b", "17.0", "19.0", "-2.0", "1,234", "2 new clips", "1 different training clip", "at most 3 dB"):
        assert text in page, text
