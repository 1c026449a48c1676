"""The evaluation against the same numbers worked out in NumPy, and what it says about what it did not compute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model.lpips import LPIPS
from model.vidtwin import VidTwin
from tests.trainer.evaluation.conftest import MakeRamp
from trainer.engine.device import find_device
from trainer.evaluation.found_videos import find_videos
from trainer.evaluation.measures import Measures
from trainer.evaluation.metrics import reconstruct
from trainer.evaluation.read_ahead import prefetched
from trainer.evaluation.report import evaluate
from trainer.evaluation.run import load_model
from trainer.evaluation.sources import VideoFiles

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
    assert {name: found["windows"] for name, found in report["per_source"].items()} == {"a.mp4": 2, "b.mp4": 3}
    assert report["per_source"]["b.mp4"]["psnr"] == pytest.approx(np.mean(expected["b.mp4"]), abs=1e-3)
    assert report["compression_rate"] == pytest.approx((4 * 4 * 2 * 2 + 4 * 4 * 4) / (3 * 4 * 32 * 32))


def test_lpips_is_that_of_frames_in_minus_1_to_1(tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    torch.manual_seed(1)
    network = LPIPS()  # of random weights: the question is only what it is given
    grey_ramp(tmp_path / "a.mp4", 9, 25)
    grey_ramp(tmp_path / "b.mp4", 12, 25, step=9)
    report = evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32), Measures({"lpips": network}), batch=2)
    expected = []
    with torch.no_grad():
        for window in VideoFiles(find_videos(tmp_path), 4, 32).windows():
            real = window.video[None] * 2 - 1
            fake = tiny_model.decode(tiny_model.encode(real)).clamp(-1, 1)
            expected.append(network(real[0].transpose(0, 1), fake[0].transpose(0, 1)).mean().item())
    assert len(expected) == report["windows"] == 5
    assert report["metrics"]["lpips"]["value"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert "lpips" not in report["not_computed"]


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
    endless.close()
    assert len(closed) == 2


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Machines are folders with /dev: first without a GPU, then with one that torch does not see, then with two."""
    monkeypatch.setenv("PATH", "")  # no nvidia-smi
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto", tmp_path) == find_device("cpu", tmp_path) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"^--device cuda needs a GPU, and torch can use none here: "):
        find_device("cuda", tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    with pytest.raises(ValueError, match=r"^--device auto: this machine has a GPU \(/dev/nvidia0\), and torch cannot"):
        find_device("auto", tmp_path)
    assert find_device("cpu", tmp_path) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"--device cuda:2: torch sees 2 GPUs here, from cuda:0 on"):
        find_device("cuda:2")


def test_sources_are_those_that_gave_a_window(tiny_model: VidTwin, tmp_path: Path, grey_ramp: MakeRamp) -> None:
    grey_ramp(tmp_path / "a.mp4", 9, 25)
    grey_ramp(tmp_path / "short.mp4", 3, 25)
    (tmp_path / "broken.mp4").write_bytes(b"x")
    report = evaluate(tiny_model, VideoFiles(find_videos(tmp_path), 4, 32))
    assert (report["windows"], report["sources"], len(report["failed"])) == (2, 1, 2)
