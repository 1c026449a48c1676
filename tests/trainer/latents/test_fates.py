"""Every clip has a fate: encoded, refused for a reason, or quarantined; and what is refused before anything starts."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.row_fates import RowFate
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.latents.packing import LatentPacker
from data_pipeline.store.local import LocalStore
from launch.encode_latents import report
from tests.data_pipeline.build import stub
from tests.trainer.latents.corpus import MORE, build_clips, config_of, encode_here, save_model
from trainer.latents.encoder import WindowEncoder


def fates(store: LocalStore, units: int) -> list[RowFate]:
    return [fate for unit in range(units) for fate in read_record(store, unit).rows]


def test_clips_shorter_than_a_window_are_counted(clips: LocalStore, model: Path, tmp_path: Path) -> None:
    """Clips have 8 to 20 frames; a window of 4 frames with stride 5 needs 16."""
    result = encode_here(config_of(model, clips.root, tmp_path, "windows.frame_stride=5"))
    assert result.dataset is not None
    ledger = result.dataset.ledger
    found = fates(LocalStore(tmp_path), 3)
    short = [fate for fate in found if fate.reason == "too_short"]
    assert short
    assert all(fate.measured == {"frames": fate.measured["frames"], "needed": 16} for fate in short if fate.measured)
    assert ledger.input == len(found) == ledger.committed + len(short)
    assert verify(LocalStore(tmp_path)).problems == []


def test_clips_that_are_no_videos_are_quarantined_and_nothing_stored_is_no_success(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips of the stub are random bytes under right checksums."""
    source = stub.write_sources(tmp_path / "sources", 12)
    stub.build_here(stub.config_of(source, tmp_path / "shards"))
    count = read_dataset(LocalStore(tmp_path / "shards")).samples
    config = config_of(model, tmp_path / "shards", tmp_path / "latents")
    result = encode_here(config)
    assert result.dataset is not None
    ledger = result.dataset.ledger
    assert (ledger.input, ledger.committed, ledger.quarantined) == (count, 0, Counter(undecodable=count))
    assert result.dataset.latents is not None
    assert result.dataset.latents.devices == {}, "no device has encoded anything"
    assert verify(LocalStore(tmp_path / "latents")).problems == []
    for run, retry in ((result, False), (encode_here(config), False), (encode_here(config, retry=True), True)):
        assert run.dataset is not None
        assert report(config, run, run.dataset, retry=retry) == 1
        assert capsys.readouterr().err.startswith("launch/encode_latents.py: no latent was committed; the table says")


def test_a_damaged_source_shard_costs_the_clips_that_are_damaged_and_no_other(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(clips.root, tmp_path / "shards")
    shard = next((tmp_path / "shards" / "shards").glob("000000-*.tar"))
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1  # in the first clip
    shard.write_bytes(data[:-30_000])  # and the last clips are cut off
    result = encode_here(config_of(model, tmp_path / "shards", tmp_path / "latents"))
    assert result.dataset is not None
    found, before = fates(LocalStore(tmp_path / "latents"), 3), fates(latents, 3)
    damaged = [fate for fate in found if fate.error == "damaged"]
    assert found[0] in damaged
    assert 2 <= len(damaged) < len(read_record(latents, 0).rows)
    assert [fate for fate in found if fate not in damaged] == [f for f, g in zip(before, found, strict=True) if f == g]
    assert verify(LocalStore(tmp_path / "latents")).problems == []
    config = config_of(model, tmp_path / "shards", tmp_path / "latents")
    assert report(config, result, result.dataset) == 0
    assert (
        f"retry     {len(damaged)} of the clips could not be read; --retry-quarantined tries them again\n"
        in capsys.readouterr().out
    )
    shutil.copy(clips.root / "shards" / shard.name, shard)
    assert encode_here(config).run.done == 0, "what could not be read is not read again by itself"
    mended = encode_here(config, retry=True)
    assert mended.dataset is not None
    assert mended.dataset.rows.rejected == {"retried": len(damaged)}
    assert mended.dataset.rows.quarantined == {}
    assert report(config, mended, mended.dataset) == 0
    assert "retry" not in capsys.readouterr().out.replace("retried", "")
    assert mended.dataset.samples == read_dataset(latents).samples
    assert verify(LocalStore(tmp_path / "latents")).problems == []
    assert encode_here(config, retry=True).run.done == 0


def test_new_clips_of_which_nothing_could_be_stored_are_no_success(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dataset holds latents of earlier clips, and of the appended ones none; trying these again is no new work."""
    build_clips(tmp_path)
    config = config_of(model, tmp_path / "shards", tmp_path / "latents")
    first = encode_here(config)
    assert first.dataset is not None
    assert report(config, first, first.dataset) == 0
    build_clips(tmp_path, MORE)
    for shard in sorted((tmp_path / "shards" / "shards").glob("*.tar"))[-2:]:
        shard.write_bytes(bytes(shard.stat().st_size))
    more, again = encode_here(config), encode_here(config, retry=True)
    for run, retry, status in ((more, False, 1), (again, True, 0)):
        assert run.dataset is not None
        assert (run.run.done > 0, run.run.items, run.dataset.samples) == (True, 0, first.dataset.samples)
        assert report(config, run, run.dataset, retry=retry) == status
        assert ("no latent was committed" in capsys.readouterr().err) == bool(status)


def test_a_missing_source_shard_fails_its_unit_alone(clips: LocalStore, model: Path, tmp_path: Path) -> None:
    shutil.copytree(clips.root, tmp_path / "shards")
    next((tmp_path / "shards" / "shards").glob("000001-*.tar")).unlink()
    with pytest.raises(FileNotFoundError, match="000001-000"):
        encode_here(config_of(model, tmp_path / "shards", tmp_path / "latents"))
    assert read_record(LocalStore(tmp_path / "latents"), 0).unit == 0


def test_a_unit_whose_last_windows_find_no_room_is_not_committed(
    clips: LocalStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All windows of the unit are one batch, so nothing follows that could meet the error of their packing."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(LatentPacker, "add", full)
    with pytest.raises(OSError, match="No space left on device"):
        encode_here(config_of(model, clips.root, tmp_path, "encode.batch=1000"))
    assert not LocalStore(tmp_path).exists("units/000000.json")


def test_latents_that_cannot_be_stored_are_refused_by_window(
    clips: LocalStore, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = WindowEncoder.encode
    seen = 0

    def sometimes_too_large(encoder: WindowEncoder, video: Tensor) -> list[dict[str, Tensor]]:
        nonlocal seen
        found = [{name: tensor.clone() for name, tensor in window.items()} for window in real(encoder, video)]
        for tensors in found:
            seen += 1
            if seen == 2:
                tensors["structure"][0, 0, 0, 0] = 1e6
            if seen == 3:
                tensors["dynamics_w"][0, 0, 0] = float("nan")
        return found

    monkeypatch.setattr(WindowEncoder, "encode", sometimes_too_large)
    result = encode_here(config_of(model, clips.root, tmp_path))
    assert result.dataset is not None
    reasons = Counter(stretch.reason for fate in fates(LocalStore(tmp_path), 3) for stretch in fate.stretches)
    assert reasons == Counter(too_large=1, not_finite=1)
    assert result.dataset.samples == seen - 2
    assert verify(LocalStore(tmp_path)).problems == []


def test_a_clip_that_gave_no_latents_and_has_new_texts_is_tried_again_and_is_no_other_video(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("bikes", "bikes.mp4", "train")]
    build_clips(tmp_path, rows)
    config = config_of(model, tmp_path / "shards", tmp_path / "out")
    with monkeypatch.context() as patch:
        real = WindowEncoder.encode

        def never_finite(encoder: WindowEncoder, video: Tensor) -> list[dict[str, Tensor]]:
            windows = real(encoder, video)
            return [{name: torch.full_like(values, torch.nan) for name, values in one.items()} for one in windows]

        patch.setattr(WindowEncoder, "encode", never_finite)
        encode_here(config)
    (one,) = {fate.fate for fate in fates(LocalStore(tmp_path / "out"), 1)}
    assert one != "committed"
    clips = len(fates(LocalStore(tmp_path / "out"), 1))
    again = tmp_path / "again"
    build_clips(again, rows, texts={"bikes": "new words"})
    encode_here(config_of(model, again / "shards", tmp_path / "out"))
    said = capsys.readouterr().out
    assert f"the clips have changed: {clips} tried again\n" in said
    assert verify(LocalStore(tmp_path / "out")).problems == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["windows.mirrored=true"], r"windows\.mirrored: False -> True"),
        (["windows.frames=3"], r"\(windows\.frames: 4 -> 3\)"),
        (["stored.dtype=bf16"], r"\(stored\.dtype: fp16 -> bf16\)"),
        (["stored.logvar=true"], r"\(stored\.logvar: False -> True\)"),
        (["encode.batch=2"], r"\(encode\.batch: 8 -> 2\)"),
        (["encode.threads=2"], r"\(encode\.threads: 1 -> 2\)"),
    ],
)
def test_other_settings_on_the_same_output_are_refused_with_the_difference(
    clips: LocalStore, model: Path, latents: LocalStore, words: list[str], message: str
) -> None:
    with pytest.raises(
        ValueError, match=rf"planned with other settings \(?.*{message}.*; use the old ones, or another output$"
    ):
        encode_here(config_of(model, clips.root, latents.root, *words))


def test_another_model_on_the_same_output_is_refused(clips: LocalStore, latents: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(weights of the model: [0-9a-f]{12} -> [0-9a-f]{12}\); use"):
        encode_here(config_of(save_model(tmp_path, seed=1), clips.root, latents.root))


def test_the_output_of_clips_is_refused(clips: LocalStore, model: Path, latents: LocalStore) -> None:
    with pytest.raises(ValueError, match=r"holds a dataset of clips; name another output"):
        encode_here(config_of(model, clips.root, clips.root))
    with pytest.raises(ValueError, match=r"--shards .* is a dataset of latents; give one of clips"):
        encode_here(config_of(model, latents.root, clips.root))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["windows.frames=5"], r"windows\.frames=5: this model takes 2 to 4 frames"),
        (["windows.resize=16"], r"windows\.resize=16 is smaller than the model's 32 pixels"),
    ],
)
def test_windows_that_the_model_does_not_take_are_refused(
    clips: LocalStore, model: Path, words: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        encode_here(config_of(model, clips.root, tmp_path, *words))


@pytest.mark.parametrize("pixels", [32, 48])
def test_frames_may_be_resized_to_the_models_pixels_or_more(
    clips: LocalStore, model: Path, pixels: int, tmp_path: Path
) -> None:
    from trainer.latents.encoding import plan_encoding

    job, _ = plan_encoding(config_of(model, clips.root, tmp_path, f"windows.resize={pixels}"), LocalStore(tmp_path))
    assert job.plan.settings["windows.resize"] == pixels


def test_a_worker_with_another_model_or_other_programs_encodes_nothing(
    clips: LocalStore, model: Path, tmp_path: Path
) -> None:
    from trainer.latents.encoding import plan_encoding
    from trainer.latents.worker import EncodeWorker

    job, _ = plan_encoding(config_of(model, clips.root, tmp_path / "out"), LocalStore(tmp_path / "out"))
    other = replace(job, config=config_of(save_model(tmp_path / "other", seed=1), clips.root, tmp_path / "out"))
    with pytest.raises(ValueError, match="has other weights here"):
        EncodeWorker(other).run(0)
    with pytest.raises(ValueError, match="the plan was made with older"):
        EncodeWorker(replace(job, plan=replace(job.plan, encoder="older"))).run(0)
    assert torch.get_num_threads() >= 1
