"""Several models and processes on the same windows: the same bytes, resumed, and what fails is named."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data_pipeline.store.base import StoreError
from model.st_lpips import STLPIPS
from model.vidtwin import VidTwin
from tests.trainer.evaluation.conftest import MakeRamp
from tests.trainer.test_team import in_threads
from trainer.evaluation import run
from trainer.evaluation import session as session_module
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.measures import Measures
from trainer.evaluation.page import evaluation_page
from trainer.evaluation.report import evaluate
from trainer.evaluation.session import Candidate, Session, digest_of, json_text
from trainer.evaluation.sources import Part, Totals, VideoFiles, Window, WindowSource
from trainer.evaluation.tables import windows_table
from trainer.evaluation.windows import Windows
from trainer.team import ALONE, Team


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums of several threads may be rounded in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def source(tmp_path: Path, grey_ramp: MakeRamp) -> VideoFiles:
    """Videos of 21, 1 and 3 windows, one that is too short, and one that is none."""
    folder = tmp_path / "videos"
    for name, frames, step in (("a", 85, 1), ("b", 5, 9), ("c", 12, 5), ("short", 3, 5)):
        grey_ramp(folder / f"{name}.mp4", frames, 25, step=step)
    (folder / "broken.mp4").write_bytes(b"x")
    return VideoFiles(find_videos(folder), 4, 32)


def candidate(name: str, model: VidTwin, source: WindowSource) -> Candidate:
    return Candidate(name, "trained", lambda: model, digest_of(model), model.config, None, [source])


def other_model(model: VidTwin) -> VidTwin:
    """Another one of the same shape."""
    torch.manual_seed(7)
    return VidTwin(model.config).eval()


class Noise:
    """Two parts of noisy windows; `unreadable` are the numbers of those that cannot be read at present."""

    def __init__(self, frames: int = 4, windows: int = 4) -> None:
        self.settings = {"frames": frames, "size": 32, "windows": windows}
        self.unreadable: set[int] = set()
        random = torch.Generator().manual_seed(0)
        self._videos = torch.rand(2 * windows, 3, frames, 32, 32, generator=random)

    def describe(self) -> str:
        return "noise"

    def parts(self) -> list[Part]:
        count = len(self._videos) // 2
        return [Part(f"{first}", f"noise {first} {self.settings}", count) for first in (0, count)]

    def read(self, part: Part, totals: Totals) -> Iterator[Window]:
        for number in range(int(part.name), int(part.name) + len(self._videos) // 2):
            if number in self.unreadable:
                totals.failed.append((f"{number}", "damaged"))
            else:
                yield Window(self._videos[number], f"{number}", 0, 1, 25.0)

    def whole(self) -> Totals:
        return Totals()

    def close(self) -> None: ...

    def interrupt(self) -> None: ...


def session(models: list[Candidate], output: Path | None = None, team: Team = ALONE) -> Session:
    return Session(candidates=models, measures=Measures(), device="cpu", batch=3, output=output, team=team)


def test_the_bytes_of_a_report_do_not_depend_on_the_number_of_ranks(tiny_model: VidTwin, source: VideoFiles) -> None:
    texts, models = {}, [candidate("a", tiny_model, source), candidate("b", other_model(tiny_model), source)]
    for count in (1, 2, 3):

        def measured(team: Team, count: int = count) -> None:
            done = session(models, team=team)
            assert done.run() is None
            if team.is_main:
                texts[count] = json_text(done.report() | {"c": done.compared("a")}), windows_table(done)

        in_threads(measured, count)
    assert texts[1] == texts[2] == texts[3]
    lines = texts[1][1].splitlines()
    assert lines[0] == "model,split,source,first_frame,interval,fps,psnr,ssim,difference_psnr,flicker"
    assert len(lines) == 1 + 2 * (21 + 1 + 3)
    first, _ = json.loads(texts[1][0])["models"]
    psnr = [float(line.split(",")[6]) for line in lines[1:26]]
    assert first["results"][0]["metrics"]["psnr"]["value"] == pytest.approx(np.mean(psnr), abs=1e-12)
    assert {item["source"] for item in first["results"][0]["failed"]} == {"broken.mp4", "short.mp4"}


def test_what_was_measured_is_not_measured_again(
    tiny_model: VidTwin, source: VideoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store fails in the second piece of the longest video; the next run begins with this piece."""
    whole = session([candidate("a", tiny_model, source)])
    whole.run()
    read = VideoFiles.read

    def failing(self: VideoFiles, part: Part, totals: Totals) -> Iterator[Window]:
        for number, window in enumerate(read(self, part, totals)):
            if number == 20:
                raise StoreError(errno.EIO, "gone")
            yield window

    monkeypatch.setattr(VideoFiles, "read", failing)
    first = session([candidate("a", tiny_model, source)], tmp_path / "out")
    with pytest.raises(StoreError, match="gone"):
        first.run()
    (found,) = first.report()["models"][0]["results"]
    assert (found["windows"], found["incomplete"]) == (18, "[Errno 5] gone")  # whole batches of three
    monkeypatch.setattr(VideoFiles, "read", read)
    rebuilt: list[int] = []
    reconstruct = run.reconstruct

    def counting(model: VidTwin, video: torch.Tensor) -> torch.Tensor:
        rebuilt.append(len(video))
        return reconstruct(model, video)

    monkeypatch.setattr(run, "reconstruct", counting)
    second = session([candidate("a", tiny_model, source)], tmp_path / "out")
    assert second.run() is None
    assert sum(rebuilt) == 25 - 18
    assert json_text(second.report()) == json_text(whole.report())
    rebuilt.clear()
    third = session([candidate("a", tiny_model, source)], tmp_path / "out")
    assert third.run() is None
    assert rebuilt == []
    assert json_text(third.report()) == json_text(whole.report())


def test_what_was_measured_by_another_model_network_batch_or_device_is_measured_again(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey_ramp(tmp_path / "videos" / "a.mp4", 12, 25)
    source = VideoFiles(find_videos(tmp_path / "videos"), 4, 32)
    rebuilt: list[int] = []
    reconstruct = run.reconstruct

    def counting(model: VidTwin, video: torch.Tensor) -> torch.Tensor:
        rebuilt.append(len(video))
        return reconstruct(model, video)

    monkeypatch.setattr(run, "reconstruct", counting)
    plain = {"measures": Measures(digests={"lpips": "a"}), "batch": 3, "device": "cpu"}
    for changes in ({}, {"measures": Measures(digests={"lpips": "b"})}, {"batch": 2}, {"device": "cuda"}, {"model": 1}):
        settings = plain | {name: value for name, value in changes.items() if name != "model"}
        model = other_model(tiny_model) if "model" in changes else tiny_model
        for windows in (3, 0):  # the second time all of them are there
            rebuilt.clear()
            measuring = Session(candidates=[candidate("a", model, source)], output=tmp_path / "out", **settings)  # type: ignore[arg-type]
            assert measuring.run() is None
            assert sum(rebuilt) == windows, changes


class Colours:
    """Mean colours of each frame, as features; it notes how many clips it has been asked about."""

    name, digest = "fvd", "ab"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, video: torch.Tensor) -> NDArray[np.float32]:
        self.asked.append(len(video))
        return np.float32(video.mean(dim=(3, 4)).flatten(1)[:, None].numpy())


@pytest.mark.parametrize("kept", [False, True])
def test_features_of_real_windows_are_computed_once_for_all_models_and_commands(
    tiny_model: VidTwin, source: VideoFiles, tmp_path: Path, kept: bool
) -> None:
    """25 windows: each model's reconstructions are looked at, and the real windows once."""
    first, second = candidate("a", tiny_model, source), candidate("b", other_model(tiny_model), source)
    output = tmp_path / "out" if kept else None
    network = Colours()
    settings: dict[str, Any] = {"device": "cpu", "batch": 3, "output": output}
    both = Session(candidates=[first, second], measures=Measures(fvd=network, allow_few=True), **settings)
    assert both.run() is None
    assert sum(network.asked) == 25 + 2 * 25
    alone = []
    for one in (first, second):
        alone.append(Session(candidates=[one], measures=Measures(fvd=Colours(), allow_few=True), device="cpu", batch=3))
        assert alone[-1].run() is None
    assert [model.report()["models"][0] for model in alone] == both.report()["models"]
    if kept:
        third = VidTwin(tiny_model.config).eval()
        later = Colours()
        again = Session(
            candidates=[candidate("c", third, source)], measures=Measures(fvd=later, allow_few=True), **settings
        )
        assert again.run() is None
        assert sum(later.asked) == 25


def test_a_model_that_makes_no_numbers_is_named_and_the_others_are_measured(
    tiny_model: VidTwin, source: VideoFiles
) -> None:
    broken = other_model(tiny_model)
    with torch.no_grad():
        broken.last_layer.weight.fill_(float("nan"))
    done = session([candidate("broken", broken, source), candidate("a", tiny_model, source)])
    failure = done.run()
    assert failure is not None
    assert str(failure) == "broken: psnr of a.mp4 from frame 0 on is not finite"
    first, second = done.report()["models"]
    assert first["results"] == []
    assert "not finite" in first["failed"][0]["reason"]
    assert second["results"][0]["windows"] == 25
    assert done.compared("broken") == []
    assert "Not measured" in evaluation_page(done.report(), None)


def test_want_of_memory_names_the_batch_and_what_was_measured_is_kept(
    tiny_model: VidTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10))
    reconstruct = run.reconstruct

    def full(model: VidTwin, video: torch.Tensor) -> torch.Tensor:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return reconstruct(model, video)

    monkeypatch.setattr(run, "reconstruct", full)
    done = session([candidate("a", tiny_model, Noise()), candidate("b", other_model(tiny_model), Noise())])
    failure = done.run()
    said = "a: --batch 3 needs more memory than there is (CUDA out of memory. Tried to allocate 2.00 GiB.); give a "
    assert str(failure) == f"{said}smaller number, or a device with more memory"
    first, second = (model["results"][0] for model in done.report()["models"])
    assert (first["windows"], second["windows"]) == (3, 8)
    assert "--batch 3" in first["incomplete"]


def vmaf(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    return real.mean(dim=(1, 2, 3, 4))


@pytest.mark.parametrize(
    ("size", "measures", "message"),
    [
        (32, Measures(vmaf=vmaf), "VMAF needs windows of at least 96x96 pixels, got 32x32"),
        (
            16,
            Measures({"st_lpips": STLPIPS()}),
            "--st-lpips needs windows of at least 18x18 pixels, got 16x16; measure",
        ),
        (8, Measures(), "SSIM, which is always measured, needs windows of at least 11x11 pixels, got 8x8; measure"),
    ],
)
def test_windows_too_small_for_a_metric_are_refused_before_the_first_model_is_measured(
    tiny_model: VidTwin, size: int, measures: Measures, message: str
) -> None:
    small = replace(
        candidate("small", tiny_model, Noise()), config=replace(tiny_model.config, image_size=size, patch_size=4)
    )
    with pytest.raises(ValueError, match=f"^small: {message}"):
        Session(candidates=[small], measures=measures, device="cpu")


def test_a_full_disk_ends_it_with_all_that_was_measured(
    tiny_model: VidTwin, source: VideoFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    done = session([candidate("a", tiny_model, source)], tmp_path / "out")
    monkeypatch.setattr("trainer.evaluation.pieces.np.savez", full)
    with pytest.raises(StoreError, match="no space left"):
        done.run()
    (found,) = done.report()["models"][0]["results"]
    assert found["windows"] > 0
    assert "no space left" in found["incomplete"]


def test_models_of_other_sizes_stand_in_one_table_and_are_not_compared(
    tiny_model: VidTwin, source: VideoFiles, tmp_path: Path
) -> None:
    half = VidTwin(replace(tiny_model.config, frames=2)).eval()
    shorter = VideoFiles(find_videos(tmp_path / "videos"), 2, 32)
    done = session([candidate("a", tiny_model, source), candidate("half", half, shorter)], tmp_path / "out")
    assert done.run() is None
    assert done.compared("a") == []
    assert [names for _, names, _ in done.shown()] == [["a"], ["half"]]


def test_a_comparison_is_worked_out_once_when_both_models_are_measured(
    tiny_model: VidTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are looked at after every piece, and the comparison takes minutes with many sources."""
    monkeypatch.setattr(run, "SNAPSHOT_S", -1.0)
    compared, said = [], []
    compare = session_module.compare

    def counting(model: Windows, baseline: Windows) -> dict[str, Any]:
        compared.append(len(model))
        return compare(model, baseline)

    monkeypatch.setattr(session_module, "compare", counting)
    source = Noise()
    done = session([candidate("a", tiny_model, source), candidate("b", other_model(tiny_model), source)])
    done.changed = lambda: said.append(done.compared("a"))
    assert done.run() is None
    assert len(said) > 4
    assert [len(found) for found in said if found] == [1]
    assert done.compared("a") == said[-1]
    assert compared == [8]


def test_windows_of_one_frame_and_of_several_stand_in_one_table(tiny_model: VidTwin) -> None:
    """A window of one frame has no change over time, so two columns of its line are empty."""
    one = VidTwin(replace(tiny_model.config, frames=1)).eval()
    done = session([candidate("a", tiny_model, Noise()), candidate("one", one, Noise(frames=1))])
    assert done.run() is None
    head, *lines = (line.split(",") for line in windows_table(done).splitlines())
    assert head[6:] == ["psnr", "ssim", "difference_psnr", "flicker"]
    assert [line[0] for line in lines] == ["a"] * 8 + ["one"] * 8
    assert all(all(line[6:]) == (line[0] == "a") for line in lines)
    assert {tuple(line[8:]) for line in lines if line[0] == "one"} == {("", "")}


def test_a_table_has_no_line_of_a_model_of_which_nothing_could_be_read_yet(
    tiny_model: VidTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results are written while the second model's first part, of which no window can be read, is behind it."""
    monkeypatch.setattr(run, "SNAPSHOT_S", -1.0)
    source, tables = Noise(), []
    second = candidate("b", other_model(tiny_model), source)

    def load() -> VidTwin:
        source.unreadable = {0, 1, 2, 3}
        return second.load()

    done = session([candidate("a", tiny_model, source), replace(second, load=load)])
    done.changed = lambda: tables.append(windows_table(done))
    assert done.run() is None
    lines = [sum(line.startswith("b,") for line in table.splitlines()) for table in tables]
    assert lines[0] == 0
    assert lines[-1] == 4


def test_features_beside_a_window_that_could_not_be_read_are_not_taken_for_those_of_others(tiny_model: VidTwin) -> None:
    """The first model misses window 1, so what it knows of its place in the part belongs to window 2."""
    source = Noise()
    source.unreadable = {1}
    second = candidate("b", other_model(tiny_model), source)

    def load() -> VidTwin:
        source.unreadable = set()
        return second.load()

    settings: dict[str, Any] = {"measures": Measures(fvd=Colours(), allow_few=True), "device": "cpu", "batch": 1}
    both = Session(candidates=[candidate("a", tiny_model, source), replace(second, load=load)], **settings)
    assert both.run() is None
    alone = Session(candidates=[second], **settings)
    assert alone.run() is None
    assert both.report()["models"][1] == alone.report()["models"][0]


def test_the_page_shows_best_median_and_worst_of_each_model(
    tiny_model: VidTwin, source: VideoFiles, tmp_path: Path
) -> None:
    done = session(
        [candidate("a", tiny_model, source), candidate("b", other_model(tiny_model), source)], tmp_path / "out"
    )
    assert done.run() is None
    ((_, names, shown),) = done.shown()
    assert names == ["a", "b"]
    for number, name in enumerate(names):
        windows = done.measured[number].windows[0]
        values = sorted(windows.values["psnr"].tolist(), reverse=True)
        marked = {
            reason.partition(" of ")[0]: item.values[name]["psnr"]
            for item in shown
            for reason in item.reasons
            if reason.endswith(f" of {name}")
        }
        assert marked == {"best": values[0], "median": values[12], "worst": values[-1]}
    assert all(item.mp4[4:8] == b"ftyp" for item in shown)
    page = evaluation_page(done.report() | {"comparison": done.compared("a")}, done.shown())
    assert page.count("<video") == len(shown)
    assert "<script" not in page


def test_windows_of_a_source_of_which_too_much_cannot_be_read_stay_without_a_video(
    tiny_model: VidTwin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = session([candidate("a", tiny_model, Noise())], tmp_path)
    assert done.run() is None

    def refused(self: Noise, part: Part, totals: Totals) -> Iterator[Window]:
        raise ValueError("data.max_bad_samples=0: 1 samples cannot be read")
        yield

    monkeypatch.setattr(Noise, "read", refused)
    ((_, _, shown),) = done.shown()
    assert [item.mp4 for item in shown] == [b""] * len(shown)
    assert "This window cannot be read any more." in evaluation_page(done.report(), [("noise", ["a"], shown)])


def test_evaluate_alone_says_the_same_as_a_session(tiny_model: VidTwin, source: VideoFiles) -> None:
    done = session([candidate("a", tiny_model, source)])
    done.run()
    assert evaluate(tiny_model, source, batch=3) == done.report()["models"][0]["results"][0]
