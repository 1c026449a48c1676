"""Model, clips and latents on a real S3 server: the same bytes as on a disk, also after the clips have changed."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.dataset.plan import Dataset
from data_pipeline.dataset.takedown import take_down
from data_pipeline.dataset.verify import verify
from data_pipeline.latents.compare import strays
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
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
    for store in (clips, open_store(f"{s3_uri}/clips")):
        take_down(Dataset.open(store), {"again"})
    assert len(strays(there, open_store(f"{s3_uri}/clips"))) == 1
    encode_here(local)
    encode_here(remote)
    assert contents(there) == contents(here)
    assert verify(there).problems == []
    assert strays(there, open_store(f"{s3_uri}/clips")) == []
