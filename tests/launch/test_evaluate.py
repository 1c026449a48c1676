"""launch/evaluate.py: what it measures and writes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data_pipeline.store.base import StoreError
from launch.evaluate import main
from model.provenance import Provenance, Weights
from model.vidtwin import VidTwin
from tests.data_pipeline.dataset.tiny_dataset import make_clips, split_into_shards, write_dataset
from tests.launch.evaluated import measured, model_of, results_of
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.evaluation.shard_source import ShardSource
from trainer.evaluation.sources import Part, Totals, Window


def test_what_has_no_weights_is_not_computed_and_says_how(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    video = grey_ramp(tmp_path / "a.mp4", 8, 25)
    output = tmp_path / "results" / "a"
    assert main(["--model", str(tiny_model_directory), "--source", str(video), "--output", str(output)]) == 0
    (report,) = results_of(output)
    assert set(report["metrics"]) == {"psnr", "ssim", "difference_psnr", "flicker"}
    assert set(report["not_computed"]) == {
        *("vmaf", "lpips", "st_lpips", "fvd", "frechet_efficientnet_frames", "frechet_efficientnet_differences")
    }
    printed = capsys.readouterr().out
    assert "LPIPS not computed: pass --lpips" in printed
    assert "FVD not computed: pass --fvd" in printed


def test_shorter_windows_of_a_model_that_takes_them(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = VidTwin(replace(tiny_model.config, min_frames=2))
    mixed.load_state_dict(tiny_model.state_dict())
    mixed.save_pretrained(tmp_path / "model")
    video, output = grey_ramp(tmp_path / "a.mp4", 7, 25), tmp_path / "a"
    command = ["--model", str(tmp_path / "model"), "--source", str(video), "--output", str(output)]
    assert main([*command, "--frames", "3"]) == 0
    (report,) = results_of(output)
    assert (report["frames_per_window"], report["windows"], report["left_out_frames"]) == (3, 2, 1)
    assert report["latents"]["dynamics"][1] == 3
    assert report["compression_rate"] == pytest.approx((4 * 4 * 2 * 2 + 4 * 3 * 4) / (3 * 3 * 32 * 32))
    for wrong in ("1", "5"):
        assert main([*command, "--frames", wrong]) == 2
        assert f"{tmp_path / 'model'}: --frames {wrong}: this model takes 2 to 4 frames" in capsys.readouterr().err


def test_of_a_dataset_it_is_said_how_many_samples_are_left_out_and_why(
    tiny_model_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 2 + 1 + 3 clips, those of the split with a window's 4 frames and more are measured."""
    clips = (
        make_clips(2, frames=(9,), split="val") + make_clips(1, frames=(3,), split="val") + make_clips(3, frames=(9,))
    )
    data = write_dataset(tmp_path / "data", split_into_shards(clips, [4]))
    output = tmp_path / "a"
    assert main(["--model", str(tiny_model_directory), "--shards", str(data), "--output", str(output)]) == 0
    remark = "2 samples in 1 shard; left out: 3 samples of other splits, 1 sample with too few frames"
    (report,) = results_of(output)
    assert (report["windows"], report["remarks"]) == (4, [remark])
    assert f"note: {remark}" in capsys.readouterr().out


def test_splits_in_one_option_or_two_are_all_measured(tiny_model_directory: Path, shards: Path, tmp_path: Path) -> None:
    reports = []
    for number, splits in enumerate((["--split", "val", "train"], ["--split", "val", "--split", "train", "val"])):
        output = tmp_path / f"{number}"
        command = ["--model", str(tiny_model_directory), "--shards", str(shards), *splits, "--output", str(output)]
        assert main(command) == 0
        reports.append(results_of(output))
    assert [result["windows"] for result in reports[0]] == [3 * 2, 4 * 2]
    for one, other in zip(*reports, strict=True):
        assert one["metrics"] == other["metrics"]
        assert one["incomplete"] is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(StoreError("s3://b/k: failed 8 times"), 1), (KeyboardInterrupt(), 130), (SystemExit(143), 143)],
)
def test_what_was_measured_is_written_when_the_rest_cannot_be(
    tiny_model_directory: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], error: BaseException, status: int,
) -> None:  # fmt: skip
    """The first split whole, of the second one the windows before the fifth."""
    whole = ShardSource.read

    def read(self: ShardSource, part: Part, totals: Totals) -> Iterator[Window]:
        for number, window in enumerate(whole(self, part, totals)):
            if number == 4 and self.settings["split"] == "train":
                raise error
            yield window

    monkeypatch.setattr(ShardSource, "read", read)
    output = tmp_path / "measured"
    command = ["--model", str(tiny_model_directory), "--shards", str(shards), "--split", "val", "train"]
    assert main([*command, "--batch", "2", "--output", str(output)]) == status
    first, second = results_of(output)
    assert (first["windows"], first["incomplete"]) == (6, None)
    assert (second["windows"], second["incomplete"]) == (4, str(error) if status == 1 else "interrupted")
    assert second["metrics"]["psnr"]["value"] > 0
    printed = capsys.readouterr()
    assert f"cut short: {second['incomplete']}" in printed.out
    assert "Traceback" not in printed.err


def test_a_report_inside_its_own_source_is_written_over_by_the_same_command(
    tiny_model_directory: Path, videos: Path
) -> None:
    """The moving pictures of the first run are no videos of the source for the second one."""
    output = videos / "results"
    command = ["--model", str(tiny_model_directory), "--source", str(videos), "--max-windows", "1"]
    written = []
    for _ in range(2):
        assert main([*command, "--output", str(output)]) == 0
        assert measured(output) == ["bikes.mp4", "carphone_pristine.mp4"]
        written.append((output / "report.json").read_bytes())
    assert written[0] == written[1]  # its own files are not counted as those of the source
    shutil.copy(videos / "bikes.mp4", output / "mine.mp4")  # a video of the user's, which counts
    assert main([*command, "--output", str(output)]) == 0
    assert measured(output) == ["bikes.mp4", "carphone_pristine.mp4", "results/mine.mp4"]


def test_places_may_be_written_as_file_addresses(tiny_model_directory: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("bikes.mp4\n")
    places = {"--model": tiny_model_directory, "--source": videos, "--list": tmp_path / "list.txt"}
    words = [word for option, path in places.items() for word in (option, f"file://{path}")]
    output = tmp_path / "measured"
    assert main([*words, "--max-windows", "1", "--output", f"file:{output}"]) == 0
    assert measured(output) == ["bikes.mp4"]
    assert model_of(output)["model"] == str(tiny_model_directory)


def test_the_report_names_the_step_and_the_kind_of_weights(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    video, output = grey_ramp(tmp_path / "a.mp4", 8, 25), tmp_path / "a"
    command = ["--model", str(tiny_model_directory), "--source", str(video), "--output", str(output)]
    assert main(command) == 0
    assert model_of(output)["provenance"] is None
    model = VidTwin.from_pretrained(tiny_model_directory)
    model.provenance = Provenance(
        step=600, weights=Weights.ema, settings={"steps": 900}, data={"index": "ab"}, program="cd"
    )
    model.save_pretrained(tiny_model_directory)
    capsys.readouterr()
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{tiny_model_directory}: ema weights of step 600"
    said = model_of(output)["provenance"]
    assert said == json.loads((tiny_model_directory / "provenance.json").read_text())
    assert (said["step"], said["weights"]) == (600, "ema")
    assert main([*command, "--untrained"]) == 0  # those weights are of no step
    assert model_of(output)["provenance"] is None


class MeanColours(torch.nn.Module):
    """An extractor of a call of its own: clips in [0, 1]."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean(dim=[2, 3, 4])


def test_sets_are_compared_with_their_protocol_beside_and_few_clips_are_refused(
    tiny_model_directory: Path, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two windows are fewer than the three features."""
    file = tmp_path / "mean.pt"
    torch.jit.script(MeanColours()).save(str(file))  # type: ignore[no-untyped-call]
    video, output = grey_ramp(tmp_path / "a.mp4", 8, 25), tmp_path / "out"
    command = [
        "--model",
        str(tiny_model_directory),
        "--source",
        str(video),
        "--output",
        str(output),
        "--fvd",
        str(file),
    ]
    assert main(command) == 0
    assert "2 clips for 3 feature dimensions" in results_of(output)[0]["not_computed"]["fvd"]
    assert main([*command, "--few-clips"]) == 0
    (report,) = results_of(output)
    protocol = report["metrics"]["fvd"]["protocol"]
    assert (protocol["real"], protocol["fake"], protocol["frames"], protocol["stride"]) == (2, 2, 4, 1)
    assert protocol["extractor"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "FVD: fvd: 2 real clips and 2 others, 4 frames, each, 32x32" in capsys.readouterr().out


def test_the_preset_measures_one_drawn_clip_of_each_video(
    tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of videos of 50 frames a second too, it takes neighbouring frames."""
    torch.manual_seed(0)
    VidTwin(replace(tiny_model.config, frames=16)).eval().save_pretrained(tmp_path / "model")
    file, output = tmp_path / "mean.pt", tmp_path / "out"
    torch.jit.script(MeanColours()).save(str(file))  # type: ignore[no-untyped-call]
    for name, frames, fps in (("a", 40, 25), ("b", 30, 50), ("c", 16, 25), ("d", 15, 25), ("e", 34, 25)):
        grey_ramp(tmp_path / "videos" / f"{name}.mp4", frames, fps)
    words = ["--source", str(tmp_path / "videos"), "--fvd", str(file), "--fvd-preset", "fvd2048_16f"]
    command = ["--model", str(tmp_path / "model"), *words, "--output", str(output)]
    assert main(command) == 2
    assert "fvd2048_16f takes one clip of each of 2048 videos of 16 frames or more" in capsys.readouterr().err
    assert not output.exists()
    tiny_model.save_pretrained(tmp_path / "short")
    assert main(["--model", str(tmp_path / "short"), *words, "--few-clips"]) == 2
    assert "clips of 16 frames, and here a window has 4; name a model of 16" in capsys.readouterr().err
    assert main([*command, "--few-clips"]) == 0
    (report,) = results_of(output)
    protocol = report["metrics"]["fvd"]["protocol"]
    assert {name: protocol[name] for name in ("real", "frames", "stride", "seed", "preset")} == {
        "real": 4, "frames": 16, "stride": 1, "seed": 0, "preset": "fvd2048_16f",
    }  # fmt: skip
    assert report["failed"] == [{"source": "d.mp4", "reason": "shorter than one window of 16 sampled frames"}]
    rows = list(csv.DictReader((output / "windows.csv").read_text().splitlines()))
    assert [(row["source"], row["interval"]) for row in rows] == [(f"{name}.mp4", "1") for name in "abce"]
    last = {"a.mp4": 24, "b.mp4": 14, "c.mp4": 0, "e.mp4": 18}
    assert all(0 <= int(row["first_frame"]) <= last[row["source"]] for row in rows)
