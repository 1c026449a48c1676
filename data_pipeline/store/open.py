"""Opens the store of a location, which is written as a folder name or a URI."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.store.base import DEFAULT_RETRIES, Retries, Store
from data_pipeline.store.local import LocalStore

if TYPE_CHECKING:
    from data_pipeline.store.s3 import ForeignBucket


def open_store(
    uri: str | Path, retries: Retries = DEFAULT_RETRIES, *, profile: str = "", direct: bool = False
) -> Store:
    """The store of a folder name or `s3://bucket/prefix`. This call neither contacts nor creates anything.

    Args:
        uri: a local path, `file:///path` (see `plain_place`) or `s3://bucket/prefix`. `AWS_ENDPOINT_URL` chooses
            another S3 than Amazon's.
        retries: how long requests to a remote store are tried.
        profile, direct: of `s3_client.S3Access`.
    Raises:
        ValueError: another scheme, no bucket, or credentials inside the URI.
    """
    scheme, place, prefix = split_location(uri)
    if scheme == "file":
        return LocalStore(place)  # as a text, because a Path forgets the `./` of `./~/a`, which is no home folder
    from data_pipeline.store.s3 import S3Access, S3Store  # boto3 takes 0.3 s to import; local users never need it

    return S3Store(place, prefix, retries, S3Access(profile, direct))


def open_bucket(
    bucket: str, retries: Retries = DEFAULT_RETRIES, *, profile: str = "", direct: bool = False
) -> ForeignBucket:
    """A bucket that others filled, whose keys are taken as they are. This call neither contacts nor creates anything.

    Args:
        bucket: any text; a request says whether it is the name of a bucket.
        retries: how long requests are tried.
        profile, direct: of `s3_client.S3Access`.
    """
    from data_pipeline.store.s3 import ForeignBucket, S3Access

    return ForeignBucket(bucket, retries=retries, access=S3Access(profile, direct))


def absolute_place(place: str) -> str:
    """A folder or an address that means the same in a process whose current folder, or user, is another one."""
    return place if "://" in place else str(Path(os.path.expanduser(place)).absolute())


def split_location(uri: str | Path) -> tuple[str, str, str]:
    """The parts of a location, read from its text alone: ("file", path, "") or ("s3", bucket, prefix).

    Keys of S3 may hold every character, so `?` and `#` begin no query here.

    Raises:
        ValueError: another scheme, no bucket, or credentials inside the URI.
    """
    text = plain_place(str(uri))
    if "://" not in text:
        return "file", text, ""
    scheme, _, rest = text.partition("://")
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket:
        raise ValueError(
            f"a {scheme}:// location must not hold credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(or an AWS profile) in the environment and write the location without them"
        )
    if scheme.lower() == "s3" and bucket:
        return "s3", bucket, prefix.strip("/")
    raise ValueError(f"location {without_secrets(text)!r} is not understood; use a folder or s3://bucket/prefix")


def plain_place(text: str, key: str = "") -> str:
    """A place as all code below takes it: `file:///path` becomes `/path`, everything else stays as it is written.

    `file:/path` means the same. Nothing in the path is decoded: `%20` stays `%20`.

    Args:
        text: a path or an address.
        key: the setting that holds it, for messages.
    Raises:
        ValueError: a `file:` address of another machine or of a relative path, or a NUL byte, which no path can hold.
    """
    shown = repr(without_secrets(text))
    named = f"{key}={shown}" if key else shown
    if "\0" in text:
        raise ValueError(f"{named} holds a NUL byte, which no path can; remove it")
    if not text.lower().startswith("file:"):
        return text
    path = text[len("file:") :]
    path = path.removeprefix("//") if path.startswith("///") else path
    if not path.startswith("/") or path.startswith("//"):
        raise ValueError(f"{named} is no file of this machine; write file:///PATH or the plain path")
    return path


def without_secrets(uri: str) -> str:
    """A location without user name, password, query and fragment, so that a message may show it.

    In an address of S3 `?` and `#` are part of a name or a pattern, as in `split_location`, and stay.
    """
    plain = re.split(r"[?#]", uri)[0] if "://" in uri and not uri.lower().startswith("s3://") else uri
    return re.sub(r"(?<=://)[^/]*@", "", plain)
