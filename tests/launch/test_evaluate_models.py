"""launch/evaluate.py with several models, a baseline, the paper's protocols, and several processes."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launch.evaluate import main
from launch.evaluation_measures import load_measures
from launch.evaluation_options import evaluation_parser
from model.st_lpips import STLPIPS
from model.vidtwin import VidTwin
from tests.launch.two_ranks import ROOT, ended, environment
from tests.tools import browser
from tests.tools.ports import free_port


@pytest.fixture
def two_models(tiny_model: VidTwin, tmp_path: Path) -> list[str]:
    """Two model directories of one shape."""
    torch.manual_seed(3)
    places = []
    for name, model in (("first", tiny_model), ("second", VidTwin(tiny_model.config))):
        model.save_pretrained(tmp_path / name)
        places.append(str(tmp_path / name))
    return places


def test_what_was_measured_by_other_weights_of_st_lpips_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their package may be another version the next time, and kept values are found by this digest."""
    parser = evaluation_parser("launch/evaluate.py", "")
    arguments = parser.parse_args(["--model", "m", "--source", "videos", "--st-lpips"])
    monkeypatch.setattr(STLPIPS, "from_package", torch.nn.Identity)
    monkeypatch.setattr("model.st_lpips.package_file", lambda: tmp_path / "weights.pth")
    digests = []
    for data in (b"first", b"second"):
        (tmp_path / "weights.pth").write_bytes(data)
        digests.append(load_measures(arguments, torch.device("cpu")).digests["st_lpips"])
    assert digests == [hashlib.sha256(data).hexdigest() for data in (b"first", b"second")]


def test_several_models_stand_in_one_report_and_are_compared_with_the_baseline(
    two_models: list[str], real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same difference as between the values of the two in windows.csv."""
    first, second = two_models
    output = tmp_path / "measured"
    command = ["--model", second, "--baseline", first, "--shards", str(real_shards), "--output", str(output)]
    assert main(command) == 0
    report = json.loads((output / "report.json").read_text())
    assert [model["model"] for model in report["models"]] == [first, second]
    rows = list(csv.DictReader((output / "windows.csv").read_text().splitlines()))
    windows = report["models"][0]["results"][0]["windows"]
    assert [row["model"] for row in rows] == [first] * windows + [second] * windows
    assert rows[0]["split"] == "val"
    values = [[float(row["psnr"]) for row in rows if row["model"] == model] for model in two_models]
    (compared,) = report["comparison"]
    assert compared["metrics"]["psnr"]["difference"] == pytest.approx(
        sum(b - a for a, b in zip(*values, strict=True)) / windows, abs=1e-12
    )
    assert compared["sources"] == len({row["source"] for row in rows})
    printed = capsys.readouterr().out
    assert f"{second} against {first}, {windows} windows of {compared['sources']} sources" in printed
    page = (output / "report.html").read_text()
    assert page.count("<video") > 0
    assert "Compared with" in page


def test_one_model_under_two_names_is_refused(
    two_models: list[str], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two_models
    for other in (f"{first}/", f"{second}/../first"):
        for words in (["--model", first, second, other], ["--model", second, other, "--baseline", first]):
            assert main([*words, "--source", str(videos)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert "are the same model; name it once, or write it in one way" in line
            assert first in line
            assert other in line


def test_the_protocol_of_a_collection_shows_the_papers_rows_and_what_differs(
    tiny_model_directory: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = ["--model", str(tiny_model_directory), "--max-windows", "1"], tmp_path / "measured"
    assert main([*model, "--source", str(videos), "--protocol", "mcl-jcv", "--output", str(output)]) == 0
    paper = json.loads((output / "report.json").read_text())["paper"]
    rows = {row["name"]: row for row in paper["rows"]}
    assert rows["VidTwin"] == {
        **{"name": "VidTwin", "from": "paper", "rate": 0.2},
        **{"psnr": 28.137, "ssim": 0.8044, "lpips": 0.2414, "fvd": 388.86},
    }
    assert rows[str(tiny_model_directory)]["lpips"] is None
    assert paper["differences"][str(tiny_model_directory)][:4] == [
        "videos: paper 30, here 2",
        "frames of a window: paper 16, here 4",
        "size in pixels: paper 224, here 32",
        "--max-windows 1 was given",
    ]
    capsys.readouterr()
    ucf = [*model, "--source", str(videos), "--protocol", "ucf-101"]
    assert main(ucf) == 2
    assert "which is neither in" in capsys.readouterr().err
    (videos.parent / "ucfTrainTestlist").mkdir()
    (videos.parent / "ucfTrainTestlist" / "testlist01.txt").write_text("bikes.mp4\n")
    assert main([*ucf, "--output", str(tmp_path / "ucf")]) == 0
    paper = json.loads((tmp_path / "ucf" / "report.json").read_text())["paper"]
    assert paper["rows"][0] == {"name": "VidTwin", "from": "paper"} | dict.fromkeys(
        ("rate", "psnr", "ssim", "lpips", "fvd")
    )
    assert "videos: paper 3783, here 1" in paper["differences"][str(tiny_model_directory)]


def test_models_are_opened_before_the_first_window(
    two_models: list[str], tiny_model: VidTwin, real_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last of three models is missing, damaged, or of another size than the baseline."""
    first, second = two_models
    words = ["--model", first, str(tmp_path / "third"), "--shards", str(real_shards), "--output", str(tmp_path / "out")]
    assert main(words) == 2
    assert str(tmp_path / "third") in capsys.readouterr().err
    shutil.copytree(second, tmp_path / "third")
    weights = tmp_path / "third" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert main(words) == 2
    assert "third" in capsys.readouterr().err
    VidTwin(replace(tiny_model.config, frames=2)).save_pretrained(tmp_path / "third")
    assert main([*words, "--baseline", second]) == 2
    printed = capsys.readouterr()
    assert f"--baseline {second} has windows of 4 frames of 32 pixels, and {tmp_path / 'third'} of 2" in printed.err
    assert printed.out == ""
    assert main([*words[3:], "--model", second, "--baseline", second]) == 2
    assert "is the only model" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(not browser.program(), reason="no Chromium")
def test_a_browser_sorts_the_models_of_the_page_by_a_click(
    two_models: list[str], real_shards: Path, tmp_path: Path
) -> None:
    """PSNR is the eighth column of the table, `t0`. The order is that of the values in report.json."""
    output = tmp_path / "measured"
    assert main(["--model", *two_models, "--shards", str(real_shards), "--output", str(output)]) == 0
    models = json.loads((output / "report.json").read_text())["models"]
    psnr = {model["model"]: model["results"][0]["metrics"]["psnr"]["value"] for model in models}
    assert "PSNR" in (output / "report.html").read_text().split('for="t0-u7"')[0][-40:]
    for way, backwards in (("u", False), ("d", True)):
        seen = browser.look_at(output / "report.html", [f"label[for=t0-{way}7]"])
        assert (seen["console"], seen["scripts"]) == ([], 0)
        drawn = [words for _, words in sorted(seen["rows"], key=lambda row: row[0]) if words in psnr]
        assert drawn[:2] == sorted(psnr, key=psnr.__getitem__, reverse=backwards)
        assert seen["moving"] == seen["videos"] > 0


@pytest.mark.slow
def test_processes_that_share_the_windows_write_the_bytes_of_one(
    two_models: list[str], real_shards: Path, videos: Path, tmp_path: Path
) -> None:
    """One start of three processes; each has one thread, as the one process has."""
    command = ["--model", *two_models, "--device", "cpu", "--source", str(videos), "--batch", "2"]
    reports = []
    for count in (1, 3):
        output = tmp_path / str(count)
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(count), "--master-port", str(free_port())]
        process = subprocess.Popen(
            [sys.executable, *launcher, "launch/evaluate.py", *command, "--output", str(output)],
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = ended(process)
        assert process.returncode == 0, said
        reports.append([(output / name).read_bytes() for name in ("report.json", "windows.csv")])
    assert reports[0] == reports[1]
