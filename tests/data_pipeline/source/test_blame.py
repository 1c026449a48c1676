"""Where the fault lies: what one source causes is the fate of its row, with its words; other faults fail the unit."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import SourceProblem, Sources
from data_pipeline.source.places import find_places
from data_pipeline.source.trouble import MACHINE_ERRORS, MachineTrouble
from data_pipeline.store.open import open_store
from tests.data_pipeline.source.web_site import VIDEO
from tests.data_pipeline.store.gateway import Gateway

Fetch = Callable[..., bytes]
QUICK = SourcesConfig(attempts=1, timeout_s=60.0)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def fate(sources: Sources, video: str, scratch: Path) -> tuple[str, str]:
    """Error and words of a row that cannot be used; no file is left."""
    with pytest.raises(SourceProblem) as found:
        sources.fetch(video, scratch)
    assert os.listdir(scratch) == []
    return found.value.error, found.value.detail


def forget_credentials(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))


# --- the row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("untrusted", [False, True])
def test_names_that_can_be_no_file_are_missing(untrusted: bool, tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(b"video")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "there.mp4").symlink_to(tmp_path / "back.mp4")
    (tmp_path / "back.mp4").symlink_to(tmp_path / "there.mp4")
    sources = Sources(str(tmp_path), SourcesConfig(untrusted=untrusted))
    for video, words in (
        ("a\0b.mp4", "null byte"),
        ("loop.mp4", os.strerror(errno.ELOOP)),
        ("there.mp4", os.strerror(errno.ELOOP)),
        ("loop.mp4/x.mp4", os.strerror(errno.ELOOP)),
        ("good.mp4/x.mp4", os.strerror(errno.ENOTDIR)),
        ("x" * 300, os.strerror(errno.ENAMETOOLONG)),
    ):
        error, detail = fate(sources, video, scratch)
        assert error == "missing"
        assert words in detail
    assert sources.fetch("good.mp4", scratch) == tmp_path / "good.mp4"


@pytest.mark.parametrize(
    ("video", "words"),
    [
        ("s3://my bucket/x.mp4", "Invalid bucket name"),
        ("s3://[bucket/x.mp4", "Invalid bucket name"),
        ("s3://b?x=1/k.mp4", "Invalid bucket name"),
        ("s3://b#x/k.mp4", "Invalid bucket name"),
        ("s3://user@bucket/x.mp4", "Invalid bucket name"),
        ("s3://" + "b" * 300 + "/x.mp4", "Invalid bucket name"),
        ("s3://arn:aws:s3:us-east-1:1:nothing/x.mp4", "Invalid bucket name"),
        ("s3:///x.mp4", "is no address of an object"),
        ("s3://bucket/", "is no address of an object"),
        ("s3://bucket", "is no address of an object"),
        ("http://[bad/x", "not a valid URL"),
        ("http://host:99999/x", "not a valid URL"),
        ("http://" + "a" * 300 + "/x", "not a valid URL"),
        ("http://exa mple.invalid/x", "not a valid URL"),
        ("http://a\x7fb.invalid/x", "not a valid URL"),
    ],
)
def test_addresses_that_are_none_are_the_rows_fate(
    video: str, words: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    error, detail = fate(Sources("/nowhere", QUICK), video, scratch)
    assert error == "missing"
    assert words in detail


@pytest.mark.s3
def test_what_the_store_says_of_one_object_is_that_rows_fate(s3_uri: str, scratch: Path) -> None:
    """Real answers: a key that is too long, no such object, no such bucket, no right to one object."""
    store, sources = open_store(s3_uri), Sources(s3_uri, QUICK)
    bucket = s3_uri.split("/")[2]
    store.write("good.mp4", VIDEO)
    store.write("closed.mp4", VIDEO)
    closed = f"arn:aws:s3:::{bucket}/some/prefix/closed.mp4"
    policy = f'''{{"Version": "2012-10-17", "Statement": [
        {{"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": "{closed}"}}]}}'''
    boto3.session.Session().client("s3").put_bucket_policy(Bucket=bucket, Policy=policy)
    assert fate(sources, "k" * 1100, scratch)[0] == "missing"
    assert fate(sources, "none.mp4", scratch)[0] == "missing"
    assert fate(sources, "s3://no-such-bucket-here/x.mp4", scratch)[0] == "missing"
    error, words = fate(sources, "closed.mp4", scratch)
    assert error == "forbidden"
    assert "AccessDenied" in words
    assert sources.fetch("good.mp4", scratch).read_bytes() == VIDEO


@pytest.mark.s3
@pytest.mark.parametrize(
    "key", ["a//b.mp4", "/a.mp4", "./a.mp4", "a/./b", "dir/ ", " lead", "a/../b", "..", "x/", "//", "a b?c#d%e"]
)
def test_keys_of_others_are_taken_as_they_are(key: str, s3_uri: str, scratch: Path) -> None:
    bucket = s3_uri.split("/")[2]
    boto3.session.Session().client("s3").put_object(Bucket=bucket, Key=key, Body=VIDEO + key.encode())
    assert Sources("/nowhere", QUICK).fetch(f"s3://{bucket}/{key}", scratch).read_bytes() == VIDEO + key.encode()


# --- the machine -----------------------------------------------------------------------------------------------------


def test_no_credentials_at_all_is_no_fault_of_a_row(
    scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_credentials(monkeypatch, tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(MachineTrouble, match="set AWS_ACCESS_KEY_ID"):
        Sources("/nowhere", QUICK).fetch("s3://bucket/x.mp4", scratch)


@pytest.mark.s3
@pytest.mark.parametrize(
    ("name", "code"), [("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"), ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId")]
)
def test_wrong_credentials_are_no_fault_of_a_row(
    name: str, code: str, s3_uri: str, s3_gateway: Gateway, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(s3_uri).write("x.mp4", VIDEO)
    sources = Sources(s3_uri, QUICK)
    monkeypatch.setenv(name, "wrong")
    for video in ("x.mp4", "none.mp4"):
        with pytest.raises(MachineTrouble, match=code):
            sources.fetch(video, scratch)
    monkeypatch.setenv(name, s3_gateway.environment()[name])
    assert sources.fetch("x.mp4", scratch).read_bytes() == VIDEO, "credentials that were renewed are read again"


def test_a_folder_that_goes_away_is_no_fault_of_a_row(tmp_path: Path, scratch: Path) -> None:
    base, away = tmp_path / "videos", tmp_path / "away"
    for name in ("a.mp4", "b.mp4", "sub/c.mp4", "sub/d.mp4"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(b"video")
    fresh, known = Sources(str(base), QUICK), Sources(str(base), QUICK)
    known.fetch("a.mp4", scratch)
    known.fetch("sub/c.mp4", scratch)
    assert fate(known, "none.mp4", scratch)[0] == "missing", "the others are there"
    shutil.move(base / "sub", away)
    (base / "sub").mkdir()
    with pytest.raises(MachineTrouble, match=r"sub/c\.mp4 could be read before"):  # a mount below the folder
        known.fetch("sub/d.mp4", scratch)
    shutil.move(base, away / "all")
    for sources in (fresh, known):
        with pytest.raises(MachineTrouble, match=r"videos, cannot be read"):
            sources.fetch("b.mp4", scratch)
    base.mkdir()
    with pytest.raises(MachineTrouble, match="is empty; is its disk mounted"):  # the place of a mount
        fresh.fetch("b.mp4", scratch)


@pytest.mark.parametrize("lost", ["gone", "empty"])
def test_one_of_several_mounts_is_lost_before_this_process_has_read_from_it(
    lost: str, tmp_path: Path, scratch: Path
) -> None:
    """Each source has its own probe: the folder that they have in common holds other things, and is there."""
    for name in ("disk_a/one", "disk_b/two"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "m.csv").write_text("video,caption\nv.mp4,a caption\nnone.mp4,a caption\n")
        (tmp_path / name / "v.mp4").write_bytes(b"video")
    places = find_places([str(tmp_path / name / "m.csv") for name in ("disk_a/one", "disk_b/two")], scratch)
    sources = Sources(places.base, QUICK, places.folders)
    shutil.move(tmp_path / "disk_b", tmp_path / "away")
    if lost == "empty":
        (tmp_path / "disk_b" / "two").mkdir(parents=True)
    assert sources.fetch("disk_a/one/v.mp4", scratch).read_bytes() == b"video"
    assert fate(sources, "disk_a/one/none.mp4", scratch)[0] == "missing", "its disk is there"
    with pytest.raises(MachineTrouble, match=rf"disk_b/two, {'cannot be read' if lost == 'gone' else 'is empty'}"):
        sources.fetch("disk_b/two/v.mp4", scratch)


def test_absolute_paths_whose_disk_goes_away(tmp_path: Path, scratch: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    for name in ("a", "b", "c"):
        (disk / name).write_bytes(b"video")
    sources = Sources(str(tmp_path), QUICK)
    sources.fetch(str(disk / "a"), scratch)
    sources.fetch(str(disk / "b"), scratch)
    shutil.rmtree(disk)
    with pytest.raises(MachineTrouble, match="could be read before"):
        sources.fetch(str(disk / "c"), scratch)


@pytest.mark.parametrize("number", sorted(MACHINE_ERRORS))
def test_errors_of_a_disk_or_a_mount_are_no_fault_of_a_row(
    number: int, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, path = os.stat, tmp_path / "a.mp4"

    def failing(asked: Any, **options: Any) -> os.stat_result:
        if asked == path:
            raise OSError(number, os.strerror(number), str(asked))
        return real(asked, **options)

    path.write_bytes(b"video")
    sources = Sources(str(tmp_path), QUICK)
    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(MachineTrouble, match="cannot be read"):
        sources.fetch("a.mp4", scratch)


def test_a_decoder_that_meets_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders say `Input/output error` of damaged files, too: only a file that cannot be read is no fault of a row."""
    path = tmp_path / "a.mp4"
    path.write_bytes(b"damaged")
    sources, words = Sources(str(tmp_path), QUICK), f"[Errno 5] {os.strerror(errno.EIO)}: 'a.mp4'"
    sources.check_machine("a.mp4", path, words)
    sources.check_machine("a.mp4", path, "Invalid data found when processing input")
    path.unlink()
    (tmp_path / "b.mp4").write_bytes(b"video")
    with pytest.raises(SourceProblem, match="no such file"):
        sources.check_machine("a.mp4", path, words)
