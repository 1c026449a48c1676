"""Latents follow their clips: new, gone, with other texts, with another video; also when killed at any write."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

from data_pipeline.dataset.description import read_dataset
from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.dataset.units import read_record
from data_pipeline.dataset.verify import verify
from data_pipeline.latents.compare import strays
from data_pipeline.store.local import LocalStore
from tests.trainer.latents import corpus
from tests.trainer.latents.corpus import MORE, ROWS, build_clips, config_of, contents, encode_here
from tests.trainer.latents.test_encoding import samples
from trainer.latents.unit import encode_unit
from trainer.latents.worker import EncodeWorker

Change = Callable[[LocalStore, Path], LocalStore]
"""From the clips, which it must not change, and an empty folder to a dataset of changed clips."""


def grown(clips: LocalStore, folder: Path) -> LocalStore:
    """Two more sources."""
    shutil.copytree(clips.root, folder / "shards")
    return build_clips(folder, MORE)


def shrunk(clips: LocalStore, folder: Path) -> LocalStore:
    """One source is taken down."""
    shutil.copytree(clips.root, folder / "shards")
    take_down(Dataset.open(LocalStore(folder / "shards")), {"phone"})
    return LocalStore(folder / "shards")


def renamed(clips: LocalStore, folder: Path) -> LocalStore:
    """One source has another label and belongs to another split; the captions of two sources are other ones."""
    return build_clips(folder, [("bikes", "bikes.mp4", "val"), *ROWS[1:]], texts={"bikes": "new words", "phone": "é"})


def replaced(clips: LocalStore, folder: Path) -> LocalStore:
    """One source has another video under the same id."""
    return build_clips(folder, [ROWS[0], ("again", "bigbuckbunny.mp4", "test"), ROWS[2]])


def everything(clips: LocalStore, folder: Path) -> LocalStore:
    """All of this at once: `phone` is gone, `bikes` has new texts, `again` another video, and two sources are new."""
    rows = [("bikes", "bikes.mp4", "val"), ("again", "bigbuckbunny.mp4", "train"), *MORE]
    return build_clips(folder, rows, texts={"bikes": "new words"})


CHANGES = [grown, shrunk, renamed, replaced, everything]


@pytest.fixture(scope="module", params=CHANGES, ids=lambda change: change.__name__)
def changed(request: pytest.FixtureRequest, clips: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    change: Change = request.param
    return change(clips, tmp_path_factory.mktemp(change.__name__))


def copy_of(store: LocalStore, folder: Path) -> LocalStore:
    shutil.copytree(store.root, folder)
    return LocalStore(folder)


def clip_keys(store: LocalStore) -> set[str]:
    return {json.loads(sample["json"])["clip_key"] for sample in samples(store).values()}


def test_the_same_command_makes_the_latents_those_of_the_changed_clips(
    changed: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    before = samples(latents)
    store = copy_of(latents, tmp_path / "latents")
    result = encode_here(config_of(model, changed.root, store.root))
    assert result.dataset is not None
    assert verify(store).problems == []
    assert strays(store, changed) == []
    fresh = encode_here(config_of(model, changed.root, tmp_path / "fresh"))
    assert fresh.dataset is not None
    found, expected = samples(store), samples(LocalStore(tmp_path / "fresh"))
    assert found.keys() == expected.keys()
    for key, sample in found.items():
        assert json.loads(sample["json"]) == json.loads(expected[key]["json"])
        assert sample["txt"] == expected[key]["txt"]
        own, other = (safetensors.torch.load(s["safetensors"]) for s in (sample, expected[key]))
        for name, tensor in own.items():
            np.testing.assert_allclose(tensor.float(), other[name].float(), atol=2e-3)
        is_same_video = (
            key in before
            and json.loads(before[key]["json"])["clip_sha256"] == json.loads(sample["json"])["clip_sha256"]
        )
        assert not is_same_video or sample["safetensors"] == before[key]["safetensors"], "encoded once"
    again = contents(store)
    assert encode_here(config_of(model, changed.root, store.root)).run.done == 0
    assert contents(store) == again, "a second time there is nothing to do"


def test_statistics_after_a_change_are_those_of_the_samples_that_are_there(
    changed: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    store = copy_of(latents, tmp_path / "latents")
    encode_here(config_of(model, changed.root, store.root))
    described = read_dataset(store).latents
    assert described is not None
    rows = [s for s in samples(store).values() if json.loads(s["json"])["split"] == "train"]
    for name, found in described.statistics.items():
        if not rows:
            assert (found.values, found.mean, found.deviation) == (0, (), ())
            continue
        values = np.stack([safetensors.torch.load(row["safetensors"])[name].double().numpy() for row in rows])
        by_channel = values.swapaxes(0, 1).reshape(values.shape[1], -1)
        assert found.values == by_channel.shape[1]
        np.testing.assert_allclose(found.mean, by_channel.mean(axis=1), rtol=1e-9)
        np.testing.assert_allclose(found.deviation, by_channel.std(axis=1), rtol=1e-9)


def test_statistics_forget_the_training_clips_that_left(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    """`bikes` is the only source of the split train."""
    fewer, store = copy_of(clips, tmp_path / "shards"), copy_of(latents, tmp_path / "latents")
    take_down(Dataset.open(fewer), {"bikes"})
    encode_here(config_of(model, fewer.root, store.root))
    described = read_dataset(store).latents
    assert described is not None
    assert {(found.values, found.mean, found.deviation) for found in described.statistics.values()} == {(0, (), ())}


def test_only_clips_with_a_new_video_are_encoded(
    changed: LocalStore, model: Path, latents: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def videos(store: LocalStore) -> set[tuple[str, str]]:
        found = (json.loads(sample["json"]) for sample in samples(store).values())
        return {(lineage["clip_key"], lineage["clip_sha256"]) for lineage in found}

    encoded: list[str] = []

    def noted(*arguments: Any, **named: Any) -> Any:
        encoded.extend(row.id for row in arguments[2])
        return encode_unit(*arguments, **named)

    monkeypatch.setattr("trainer.latents.worker.encode_unit", noted)
    store = copy_of(latents, tmp_path / "latents")
    encode_here(config_of(model, changed.root, store.root))
    assert sorted(encoded) == sorted(key for key, _ in videos(store) - videos(latents))


@pytest.mark.parametrize(
    "operation",
    ["write", *(pytest.param(name, marks=pytest.mark.slow) for name in ("write_file", "put_if_absent", "delete"))],
)
def test_killed_at_any_write_the_same_command_ends_with_the_same_bytes(
    operation: str, clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = everything(clips, tmp_path / "clips")
    config = config_of(model, source.root, tmp_path / "undisturbed")
    encode_here(replace(config, output=str(copy_of(latents, tmp_path / "undisturbed").root)))
    expected = contents(LocalStore(tmp_path / "undisturbed"))
    original = getattr(LocalStore, operation)
    for last in range(40):
        store = copy_of(latents, tmp_path / f"killed-{last}")
        left = last

        def dying(on: LocalStore, *arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError("power cut")
            return original(on, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, operation, dying)
            try:
                encode_here(replace(config, output=str(store.root)))
            except OSError:
                assert left < 0
        encode_here(replace(config, output=str(store.root)))
        assert contents(store) == expected, f"{operation} number {last}"
        if left >= 0:
            assert last > 2, "some were survived"
            return
    pytest.fail("the operation never ran to its end")


def test_source_shards_that_are_rewritten_before_they_are_encoded(
    clips: LocalStore, model: Path, tmp_path: Path
) -> None:
    """A source of a planned unit is taken down before the unit is encoded; its other clips are not lost."""
    source = LocalStore(tmp_path / "clips" / "shards")
    shutil.copytree(clips.root, source.root)
    config = config_of(model, source.root, tmp_path / "latents")
    store = LocalStore(tmp_path / "latents")
    job, missing = corpus.plan_encoding(config, store)
    assert missing == [0, 1, 2]
    EncodeWorker(job).run(0)
    take_down(Dataset.open(source), {"phone"})
    result = encode_here(config)
    assert result.dataset is not None
    assert read_record(store, 2).rows == ()
    assert clip_keys(store) == {row["key"] for row in _index(source)}
    assert verify(store).problems == []
    assert strays(store, source) == []


def _index(store: LocalStore) -> list[dict[str, Any]]:
    import pyarrow as pa

    return list(pa.ipc.open_file(str(store.local_path("index.arrow"))).read_all().to_pylist())


def test_verify_names_latents_whose_clip_is_gone_or_another_one(
    clips: LocalStore, latents: LocalStore, tmp_path: Path
) -> None:
    (problem,) = strays(latents, shrunk(clips, tmp_path / "shrunk"))
    assert "unit 2: the clip is no longer there: phone-" in problem
    (problem,) = strays(latents, grown(clips, tmp_path / "grown"))
    assert problem.endswith("clips have no latents; run launch/encode_latents.py again")
    problems = strays(latents, replaced(clips, tmp_path / "replaced"))
    assert any("unit 1: the clip is another one now: again-" in problem for problem in problems)
    with pytest.raises(ValueError, match="is a dataset of clips; name one of latents"):
        strays(clips, clips)
    with pytest.raises(ValueError, match=r"--source .* is a dataset of latents"):
        strays(latents, latents)


def test_damaged_latents_are_named_before_statistics_are_made_of_them(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    """A bit of a stored number in each sample; some clips have gone to another split, so all are summed again."""
    store = copy_of(latents, tmp_path / "latents")
    for shard in (store.root / "shards").glob("*.tar"):
        data = bytearray(shard.read_bytes())
        with tarfile.open(shard) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".safetensors"):
                    data[member.offset_data + member.size - 1] ^= 1
        shard.write_bytes(data)
    changed = renamed(clips, tmp_path / "renamed")
    with pytest.raises(ValueError, match=r"sample .* has another checksum than in the index; run launch/verify_shards"):
        encode_here(config_of(model, changed.root, store.root))


def test_clips_that_left_and_came_back_are_encoded_again(
    clips: LocalStore, model: Path, latents: LocalStore, tmp_path: Path
) -> None:
    store = copy_of(latents, tmp_path / "latents")
    without = shrunk(clips, tmp_path / "without")
    for _ in range(2):
        encode_here(config_of(model, without.root, store.root))
        encode_here(config_of(model, clips.root, store.root))
    assert verify(store).problems == []
    assert strays(store, clips) == []
    assert samples(store).keys() == samples(latents).keys()
    assert read_dataset(store).rows.rejected == {"taken_down": 2 * len(read_record(latents, 2).rows)}
