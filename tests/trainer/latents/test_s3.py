"""Model, clips and latents on a real S3 server: the same bytes as on a disk, also after the clips have changed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.dataset.verify import verify
from data_pipeline.latents.compare import strays
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from launch import decode_latents, export
from tests.trainer.latents.corpus import build_clips, config_of, contents, encode_here


def upload(folder: Path, uri: str) -> None:
    store = open_store(uri)
    for key in LocalStore(folder).keys():
        store.write_file(key, folder / key)


def test_the_same_latents_on_s3_and_after_a_takedown(model: Path, s3_uri: str, tmp_path: Path) -> None:
    clips = build_clips(tmp_path)
    upload(clips.root, f"{s3_uri}/clips")
    upload(model, f"{s3_uri}/model")
    remote = config_of(f"{s3_uri}/model", f"{s3_uri}/clips", f"{s3_uri}/latents")
    local = config_of(model, clips.root, tmp_path / "latents")
    here, there = LocalStore(tmp_path / "latents"), open_store(f"{s3_uri}/latents")
    encode_here(local)
    encode_here(remote)
    assert contents(there) == contents(here)
    there.delete("index.arrow")
    encode_here(remote)
    assert contents(there) == contents(here)
    for store in (clips, open_store(f"{s3_uri}/clips")):
        take_down(Dataset.open(store), {"again"})
    assert len(strays(there, open_store(f"{s3_uri}/clips"))) == 1
    encode_here(local)
    encode_here(remote)
    assert contents(there) == contents(here)
    assert verify(there).problems == []
    assert strays(there, open_store(f"{s3_uri}/clips")) == []


def test_latents_on_s3_are_decoded_and_their_statistics_exported(
    model: Path, latents: LocalStore, s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words name the store alone; the results are those of the folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the cache of shards
    upload(latents.root, f"{s3_uri}/latents")
    upload(model, f"{s3_uri}/model")
    files: dict[str, dict[str, bytes]] = {}
    for name, place in (("here", ""), ("there", s3_uri)):
        encoder = f"{place}/model" if place else str(model)
        dataset = f"{place}/latents" if place else str(latents.root)
        seen, hub = tmp_path / f"{name}-seen", tmp_path / f"{name}-hub"
        words = ["--latents", dataset, "--split", "val", "--limit", "1", "--output", str(seen)]
        assert decode_latents.main(["--model", encoder, *words]) == 0
        words = ["--format", "diffusers", "--statistics", dataset, "--output", str(hub)]
        assert export.main(["--model", encoder, *words]) == 0
        files[name] = {file.name: file.read_bytes() for folder in (seen, hub) for file in folder.iterdir()}
    assert files["there"] == files["here"]
    assert json.loads(files["there"]["config.json"])["latents_std"]
    words = ["--format", "diffusers", "--output", str(tmp_path / "none"), "--statistics", f"{s3_uri}/model"]
    assert export.main(["--model", str(model), *words]) == 2
