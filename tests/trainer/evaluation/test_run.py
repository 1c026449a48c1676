"""The evaluation against the same numbers worked out in NumPy, and what it says about what it did not compute."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.store.base import StoreError
from launch.evaluate import main
from model.lpips import LPIPS
from model.vidtwin import VidTwin
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.read_ahead import prefetched
from trainer.evaluation.run import evaluate, find_device, load_model
from trainer.evaluation.sources import ShardSource, VideoFiles, Window, find_videos

pytestmark = pytest.mark.numeric


@pytest.mark.parametrize("batch", [1, 3])
def test_values_are_means_over_windows_of_means_over_frames(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, batch: int
) -> None:
    grey_ramp(tmp_path / "a.mp4", 9, 25)
    grey_ramp(tmp_path / "b.mp4", 12, 25, step=9)
    report = evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32), batch=batch)
    expected: dict[str, list[float]] = {}
    for window in VideoFiles(find_videos(tmp_path), 4, 32).windows():
        a = window.video.numpy().astype(np.float64)
        with torch.no_grad():
            latents = tiny_model.encode(window.video[None] * 2 - 1)
            b = (np.clip(tiny_model.decode(latents)[0].double().numpy(), -1, 1) + 1) / 2
        per_frame = -10 * np.log10(((a - b) ** 2).mean(axis=(0, 2, 3)))
        expected.setdefault(window.source, []).append(per_frame.mean())
    values = expected["a.mp4"] + expected["b.mp4"]
    assert report["windows"] == len(values) == 5
    assert report["left_out_frames"] == 1
    assert report["metrics"]["psnr"]["value"] == pytest.approx(np.mean(values), abs=1e-3)
    assert report["metrics"]["psnr"]["deviation"] == pytest.approx(np.std(values), abs=1e-3)
    assert report["per_source"]["b.mp4"]["psnr"] == pytest.approx(np.mean(expected["b.mp4"]), abs=1e-3)
    assert report["compression_rate"] == pytest.approx((4 * 4 * 2 * 2 + 4 * 4 * 4) / (3 * 4 * 32 * 32))


def test_lpips_is_that_of_frames_in_minus_1_to_1(tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    torch.manual_seed(1)
    network = LPIPS()  # of random weights: the question is only what it is given
    grey_ramp(tmp_path / "a.mp4", 9, 25)
    grey_ramp(tmp_path / "b.mp4", 12, 25, step=9)
    report = evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32), batch=2, lpips=network)
    expected = []
    with torch.no_grad():
        for window in VideoFiles(find_videos(tmp_path), 4, 32).windows():
            real = window.video[None] * 2 - 1
            fake = tiny_model.decode(tiny_model.encode(real)).clamp(-1, 1)
            expected.append(network(real[0].transpose(0, 1), fake[0].transpose(0, 1)).mean().item())
    assert len(expected) == report["windows"] == 5
    assert report["metrics"]["lpips"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert "lpips" not in report["not_computed"]


def test_what_has_no_weights_is_not_computed_and_says_how(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    video = grey_ramp(tmp_path / "a.mp4", 8, 25)
    output = tmp_path / "results" / "a.json"
    assert main(["--model", str(tiny_model_directory), "--source", str(video), "--output", str(output)]) == 0
    (report,) = json.loads(output.read_text())["results"]
    assert set(report["metrics"]) == {"psnr", "ssim"}
    assert set(report["not_computed"]) == {"lpips", "fvd"}
    printed = capsys.readouterr().out
    assert "LPIPS not computed: pass --lpips" in printed
    assert "FVD   not computed: pass --fvd" in printed


def test_untrained_is_the_same_architecture_with_other_weights(tiny_model: VidTwin, tiny_model_directory: Path) -> None:
    device = torch.device("cpu")
    fresh, again = (load_model(tiny_model_directory, device, untrained=True, seed=7) for _ in range(2))
    assert fresh.config == tiny_model.config
    assert not any(module.training for module in fresh.modules())
    weights = fresh.last_layer.weight
    assert torch.equal(weights, again.last_layer.weight)
    assert not torch.equal(weights, tiny_model.last_layer.weight)


def test_one_latent_alone_gives_another_picture(tiny_model: VidTwin) -> None:
    video = torch.rand(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    both = reconstruct(tiny_model, video)
    assert both.shape == video.shape
    assert 0 <= both.min() <= both.max() <= 1
    for one in (reconstruct(tiny_model, video, dynamics=False), reconstruct(tiny_model, video, structure=False)):
        assert not torch.allclose(one, both)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source", "nowhere"], "--source nowhere does not exist"),
        (["--source", ".", "--fvd", "no.pt"], "--fvd no.pt does not exist"),
    ],
)
def test_mistakes_end_with_a_message(
    tiny_model_directory: Path, grey_ramp: MakeRamp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str,
) -> None:  # fmt: skip
    grey_ramp(tmp_path / "a.mp4", 8, 25)
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(tiny_model_directory), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_measurable_is_an_error_with_the_reasons(tiny_model: VidTwin, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no window could be measured.*broken\.mp4.*cannot be opened"):
        evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32))


def test_prefetching_keeps_order_passes_errors_on_and_can_be_left() -> None:
    assert list(prefetched(iter(range(100)), 3)) == list(range(100))
    closed = []

    def numbers(stop: int | None) -> Iterator[int]:
        try:
            n = 0
            while n != stop:
                yield n
                n += 1
            raise ValueError("at the end")
        finally:
            closed.append(n)

    items = prefetched(numbers(5), 2)
    assert [next(items) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="at the end"):
        next(items)
    endless = prefetched(numbers(None), 2)
    next(endless)
    endless.close()  # type: ignore[attr-defined]
    assert len(closed) == 2


def test_shorter_windows_of_a_model_that_takes_them(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = VidTwin(replace(tiny_model.config, min_frames=2))
    mixed.load_state_dict(tiny_model.state_dict())
    mixed.save_pretrained(tmp_path / "model")
    video, output = grey_ramp(tmp_path / "a.mp4", 7, 25), tmp_path / "a.json"
    command = ["--model", str(tmp_path / "model"), "--source", str(video), "--output", str(output)]
    assert main([*command, "--frames", "3"]) == 0
    (report,) = json.loads(output.read_text())["results"]
    assert (report["frames_per_window"], report["windows"], report["left_out_frames"]) == (3, 2, 1)
    assert report["latents"]["dynamics"][1] == 3
    assert report["compression_rate"] == pytest.approx((4 * 4 * 2 * 2 + 4 * 3 * 4) / (3 * 3 * 32 * 32))
    for wrong in ("1", "5"):
        assert main([*command, "--frames", wrong]) == 2
        assert f"--frames {wrong}: this model takes 2 to 4 frames" in capsys.readouterr().err


def test_of_a_dataset_it_is_said_how_many_samples_are_left_out_and_why(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 + 1 + 3 clips, those of the split with a window's 4 frames and more are measured."""
    clips = (
        make_clips(2, frames=(9,), split="val") + make_clips(1, frames=(3,), split="val") + make_clips(3, frames=(9,))
    )
    data = write_dataset(tmp_path / "data", split_into_shards(clips, [4]))
    output = tmp_path / "a.json"
    assert main(["--model", str(tiny_model_directory), "--shards", str(data), "--output", str(output)]) == 0
    remark = "2 samples in 1 shard; left out: 3 samples of other splits, 1 sample with too few frames"
    (report,) = json.loads(output.read_text())["results"]
    assert (report["windows"], report["remarks"]) == (4, [remark])
    assert f"note: {remark}" in capsys.readouterr().out


# ---- launch/evaluate.py ---------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    clips = make_clips(4, frames=(8,)) + make_clips(3, frames=(9,), split="val")
    return write_dataset(tmp_path / "shards", split_into_shards(clips, [4]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --shards --source is required"),
        (["--shards", "a", "--source", "b"], "argument --source: not allowed with argument --shards"),
        (["--shards", "a", "--interval", "2"], "--interval means nothing with --shards; leave it away"),
        (["--shards", "a", "--list", "l"], "--list means nothing with --shards"),
        (["--source", "a", "--split", "val"], "--split means nothing with --source"),
        (["--source", "a", "--resize", "64"], "--resize means nothing with --source"),
        (["--shards", "a", "--split", "dev"], "argument --split: invalid choice: 'dev'"),
        (["--source", "a", "--batch", "0"], "argument --batch: 0 must be a whole number of at least 1"),
        (["--source", "a", "--interval", "-2"], "argument --interval: -2 must be a whole number of at least 1"),
        (["--source", "a", "--interval", "0"], "argument --interval: 0 must be"),
        (["--source", "a", "--max-windows", "-1"], "argument --max-windows: -1 must be"),
        (["--source", "a", "--frames", "0"], "argument --frames: 0 must be"),
        (["--source", "a", "--device", "gpu"], "argument --device: gpu must be auto, cpu, cuda or cuda:N"),
        (["--source", "a", "--output", "a.mp4"], "--output a.mp4 must end in .json"),
    ],
)
def test_words_are_refused_before_the_model_is_looked_for(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["--model", "nowhere", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"--device cuda: torch sees no GPU here; use --device auto"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"--device cuda:2: torch sees 2 GPUs here, from cuda:0 on"):
        find_device("cuda:2")


def test_splits_in_one_option_or_two_are_all_measured(tiny_model_directory: Path, shards: Path, tmp_path: Path) -> None:
    reports = []
    for number, splits in enumerate((["--split", "val", "train"], ["--split", "val", "--split", "train", "val"])):
        output = tmp_path / f"{number}.json"
        command = ["--model", str(tiny_model_directory), "--shards", str(shards), *splits, "--output", str(output)]
        assert main(command) == 0
        reports.append(json.loads(output.read_text())["results"])
    assert [result["windows"] for result in reports[0]] == [3 * 2, 4 * 2]
    for one, other in zip(*reports, strict=True):
        assert one["metrics"] == other["metrics"]
        assert one["incomplete"] is None


def test_a_missing_split_is_refused_before_anything_is_measured(
    tiny_model_directory: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.json"
    command = ["--model", str(tiny_model_directory), "--shards", str(shards), "--output", str(output)]
    assert main([*command, "--split", "val", "test"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"--shards {shards} --split test: " in printed.err
    assert not output.exists()


def test_a_dataset_is_not_taken_for_videos_nor_the_other_way_round(
    tiny_model_directory: Path, shards: Path, grey_ramp: MakeRamp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_model_directory)]
    assert main([*model, "--source", str(shards)]) == 2
    assert f"--source {shards} is a dataset of shards; give it as --shards {shards}" in capsys.readouterr().err
    assert main([*model, "--source", "s3://bucket/x"]) == 2
    assert "must be a local file or folder" in capsys.readouterr().err
    video = grey_ramp(tmp_path / "videos" / "a.mp4", 8, 25)
    assert main([*model, "--shards", str(video.parent)]) == 2
    assert f"--shards {video.parent} --split val: " in capsys.readouterr().err
    (tmp_path / "list.txt").write_text("a.mp4\n")
    assert main([*model, "--source", str(video), "--list", str(tmp_path / "list.txt")]) == 2
    assert "chooses among the videos of a folder" in capsys.readouterr().err
    assert main([*model, "--shards", str(shards), "--resize", "16"]) == 2
    assert "--resize 16 is smaller than the model's 32 pixels" in capsys.readouterr().err


def test_sources_are_those_that_gave_a_window(tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    grey_ramp(tmp_path / "a.mp4", 9, 25)
    grey_ramp(tmp_path / "short.mp4", 3, 25)
    (tmp_path / "broken.mp4").write_bytes(b"x")
    report = evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32))
    assert (report["windows"], report["sources"], len(report["failed"])) == (2, 1, 2)


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoreError("s3://b/k: failed 8 times"), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 143)],
)
def test_what_was_measured_is_written_when_the_rest_cannot_be(
    tiny_model_directory: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int,
) -> None:  # fmt: skip
    """The first split whole, of the second one the windows before the fifth."""
    whole = ShardSource.windows

    def windows(self: ShardSource) -> Iterator[Window]:
        for number, window in enumerate(whole(self)):
            if number == 4 and self._split == "train":
                raise error
            yield window

    monkeypatch.setattr(ShardSource, "windows", windows)
    output = tmp_path / "report.json"
    command = ["--model", str(tiny_model_directory), "--shards", str(shards), "--split", "val", "train"]
    assert main([*command, "--batch", "2", "--output", str(output)]) == status
    first, second = json.loads(output.read_text())["results"]
    assert (first["windows"], first["incomplete"]) == (6, None)
    assert (second["windows"], second["incomplete"]) == (4, str(error) if status == 1 else "interrupted")
    assert second["metrics"]["psnr"]["value"] > 0
    printed = capsys.readouterr()
    assert f"cut short: {second['incomplete']}" in printed.out
    assert "Traceback" not in printed.err
