"""A store in an S3 bucket, through botocore, the core of boto3.

The retries of botocore are off: the bounded retries here cover failed requests and broken streams with one policy.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoRegionError,
    PartialCredentialsError,
)

from data_pipeline.outside.redaction import redacted
from data_pipeline.store.base import (
    DEFAULT_RETRIES,
    NotConfigured,
    Retries,
    Store,
    StoreError,
    checked_key,
    pause,
)
from data_pipeline.store.files import atomic_file
from data_pipeline.store.s3_client import USUAL_ACCESS, S3Access, s3_client
from data_pipeline.store.s3_errors import refusal_of, status_of

T = TypeVar("T")

_CHUNK = 1 << 20
LEFTOVER = timedelta(days=1)
"""After so long an upload in parts that was not completed counts as nobody's."""


class S3Store(Store):
    """Objects under one prefix of one bucket. boto3 finds the credentials in the environment or a profile."""

    part_bytes = 64 << 20
    """A file longer than twice this is uploaded in parts of this many bytes."""

    def __init__(
        self, bucket: str, prefix: str = "", retries: Retries = DEFAULT_RETRIES, access: S3Access = USUAL_ACCESS
    ) -> None:
        self.bucket = bucket
        self.prefix = f"{prefix}/" if prefix else ""
        self.retries = retries
        self.access = access
        self._lock = threading.Lock()
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"bucket": self.bucket, "prefix": self.prefix, "retries": self.retries, "access": self.access}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _made=None)

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{self.prefix}{key}".rstrip("/")

    def size(self, key: str) -> int:
        def head() -> int:
            request = {"Bucket": self.bucket, "Key": self._key(key)}
            try:
                return int(self._client.head_object(**request)["ContentLength"])
            except ClientError as error:
                if status_of(error) not in (400, 403):
                    raise
                # The answer to HEAD has no body, so the reason is missing: GET has it.
                answer = self._client.get_object(**request, Range="bytes=0-0")
                answer["Body"].close()
                return _object_bytes(answer)

        return self._call(key, head)

    def read(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        data = bytearray()
        for chunk in self._stream(key, offset, length):
            data += chunk
        return bytes(data)

    def read_to_file(self, key: str, path: str | Path, arrived: Callable[[int], None] = lambda total: None) -> int:
        total = 0
        with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
            for chunk in self._stream(key, 0, None):
                file.write(chunk)
                total += len(chunk)
                arrived(total)
        return total

    def write(self, key: str, data: bytes) -> None:
        self._call(
            key,
            lambda: self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, ContentMD5=_md5(data)),
        )

    def write_file(self, key: str, path: str | Path) -> None:
        if Path(path).stat().st_size <= 2 * self.part_bytes:
            self.write(key, Path(path).read_bytes())
        else:
            self._write_parts(key, Path(path))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        tries = 0

        def put() -> bool:
            nonlocal tries
            tries += 1
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=self._key(key), Body=data, ContentMD5=_md5(data), IfNoneMatch="*"
                )
            except ClientError as error:
                if error.response["ResponseMetadata"].get("HTTPStatusCode") != 412:
                    raise
                return False
            return True

        # The first try may have stored the object although its answer was lost: then the object holds these bytes.
        return self._call(key, put) or (tries > 1 and self.read(key) == data)

    def keys(self, prefix: str = "") -> Iterator[str]:
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        token: dict[str, str] = {}
        while True:
            page = self._call(
                prefix,
                lambda token=token: self._client.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.bucket, Prefix=self.prefix + prefix, **token
                ),
            )
            for item in page.get("Contents", []):
                yield item["Key"][len(self.prefix) :], item["Size"]
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, key: str) -> None:
        self._call(key, lambda: self._client.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def remove_leftovers(self, folder: str, *, alone: bool = False) -> None:
        """Abort uploads in parts that nobody completed: their parts are in no listing, and are paid for.

        A living writer's upload looks the same. So it is aborted only where nobody else writes, or a day after its
        beginning by the store's own clock. A store that does not list uploads, or forbids it, keeps them.
        """
        prefix, marker = self.prefix + (f"{folder}/" if folder else ""), dict[str, str]()
        with contextlib.suppress(OSError):
            while True:
                page = self._call(
                    folder,
                    lambda marker=marker: self._client.list_multipart_uploads(  # type: ignore[misc]
                        Bucket=self.bucket, Prefix=prefix, **marker
                    ),
                )
                now = parsedate_to_datetime(page["ResponseMetadata"]["HTTPHeaders"]["date"])
                for upload in page.get("Uploads", []):
                    if alone or now - upload["Initiated"] > LEFTOVER:
                        self._abort(upload["Key"], upload["UploadId"])
                if not page.get("IsTruncated"):
                    return
                marker = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _abort(self, whole_key: str, upload: str) -> None:
        with contextlib.suppress(BotoCoreError, ClientError):  # somebody else has aborted it, or nobody may
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=whole_key, UploadId=upload)

    def _key(self, key: str) -> str:
        return self.prefix + checked_key(key)

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                try:
                    self._made = s3_client(self.retries.timeout_s, self.access)
                except NotConfigured:
                    raise
                except (NoRegionError, PartialCredentialsError, ValueError) as error:
                    raise NotConfigured(f"S3 is not configured for {self.uri()}: {redacted(str(error))}") from error
            return self._made

    def _forget_credentials(self) -> None:
        """Drop the client, so that the next request reads the credentials again, which may have been renewed."""
        with self._lock:
            self._made = None

    def _stream(self, key: str, offset: int, length: int | None) -> Iterator[bytes]:
        """The object's bytes. After a broken stream a new request goes on from there, for the same version."""
        position, end, version, failures = offset, None if length is None else offset + length, "", 0
        while end is None or position < end:
            request: dict[str, str] = {"IfMatch": version} if version else {}
            if position or end is not None:
                request["Range"] = f"bytes={position}-{'' if end is None else end - 1}"
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key), **request)
                total = _object_bytes(answer)
                if "Range" in request and not _begins_at(answer, position, total, end):
                    raise OSError(f"the store sent other bytes than those of {request['Range']}")
                end = total if end is None else min(end, total)
                version = version or answer.get("ETag", "")
                for chunk in answer["Body"].iter_chunks(_CHUNK):
                    position += len(chunk)
                    failures = 0
                    yield chunk
                if position >= end:
                    return
                raise IncompleteReadError(actual_bytes=position - offset, expected_bytes=end - offset)
            except (BotoCoreError, ClientError, OSError) as error:
                if isinstance(error, ClientError) and status_of(error) == 416:
                    return  # the range starts at or after the end: like a local file, the object has no bytes there
                failures += 1
                self._refuse_or_pause(key, error, failures)

    def _write_parts(self, key: str, path: Path) -> None:
        target = {"Bucket": self.bucket, "Key": self._key(key)}
        upload = self._call(key, lambda: self._client.create_multipart_upload(**target))["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            with path.open("rb") as file:
                while data := file.read(self.part_bytes):
                    number = len(parts) + 1
                    answer = self._call(
                        key,
                        lambda data=data, number=number: self._client.upload_part(  # type: ignore[misc]
                            **target, UploadId=upload, PartNumber=number, Body=data, ContentMD5=_md5(data)
                        ),
                    )
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
            self._complete(key, target, upload, parts, path.stat().st_size)
        except BaseException:
            self._abort(target["Key"], upload)
            raise

    def _complete(self, key: str, target: dict[str, str], upload: str, parts: list[dict[str, Any]], size: int) -> None:
        def complete() -> None:
            try:
                self._client.complete_multipart_upload(**target, UploadId=upload, MultipartUpload={"Parts": parts})
            except ClientError as error:
                # the first try may have completed the upload although its answer was lost: then the object is complete
                if error.response["Error"].get("Code") != "NoSuchUpload" or self.size(key) != size:
                    raise

        self._call(key, complete)

    def _call(self, key: str, request: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return request()
            except (BotoCoreError, ClientError) as error:
                failures += 1
                self._refuse_or_pause(key, error, failures)

    def _refuse_or_pause(self, key: str, error: Exception, failures: int) -> None:
        """Sleep before the next try, or raise an error that names the object and, where there is one, the remedy."""
        uri = f"s3://{self.bucket}/{self.prefix}{key}"
        refusal = refusal_of(error, uri, self.bucket)
        if refusal is not None:
            if isinstance(refusal, PermissionError):
                self._forget_credentials()
            raise refusal from error
        if failures >= self.retries.attempts:
            raise StoreError(f"{uri}: failed {failures} times, last: {redacted(str(error))}") from error
        pause(failures)


class ForeignBucket(S3Store):
    """A bucket that others filled. Its keys are taken as they are: `a//b`, `/a`, `./a` and `dir/ ` are four objects."""

    def _key(self, key: str) -> str:
        return key


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _begins_at(answer: dict[str, Any], position: int, total: int, end: int | None) -> bool:
    """Whether an answer has the bytes of an object that were asked for: those from `position` on, before `end`.

    A store may answer with the whole object (RFC 9110, section 14.2). These are the right bytes where all of its
    `total` bytes were asked for.
    """
    if "ContentRange" not in answer:
        return position == 0 and (end is None or total <= end)
    found = re.match(r"bytes\s+(\d+)-", str(answer["ContentRange"]))  # 5 in `bytes 5-9/100`
    return found is not None and int(found[1]) == position


def _object_bytes(answer: dict[str, Any]) -> int:
    """Length of the whole object in bytes: 100 for `Content-Range: bytes 5-9/100`."""
    if content_range := answer.get("ContentRange"):
        return int(str(content_range).rpartition("/")[2])
    return int(answer["ContentLength"])
