"""Settings of the sources: how they are fetched, which captions are accepted, which videos are held out."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from string import Formatter

from data_pipeline.source.trouble import MachineTrouble
from data_pipeline.store.base import Retries

UCF101_SPLITS = (1, 2, 3)
"""UCF-101's official divisions into train and test."""
_OWN_HEADERS = frozenset(
    {
        *("host", "range", "if-range", "accept-encoding", "content-length", "connection", "transfer-encoding"),
        *("te", "trailer", "upgrade"),
    }
)
"""Headers that a download sets by itself."""
_HARMLESS_HEADERS = frozenset({"user-agent", "accept", "accept-language", "referer"})
"""Headers that any server may see."""


@dataclass(kw_only=True)
class SplitConfig:
    """Shares of the source videos that are held out.

    A hash of the video's name decides, so all clips of one video get the same split.
    """

    val: float = 0.01  # share of the source videos for validation; a manifest's own `split` column wins [>= 0, < 1]
    test: float = 0.0  # share of the source videos for the final test [>= 0, < 1]

    def __post_init__(self) -> None:
        if self.val < 0 or self.test < 0 or self.val + self.test >= 1:
            raise ValueError(f"split.val={self.val} and split.test={self.test} must leave a share for training")


@dataclass(kw_only=True)
class SourcesConfig:
    """How source videos are fetched. Nothing here changes the bytes of a clip."""

    attempts: int = 8  # tries for one source or one request to a store, with growing pauses [>= 1]
    timeout_s: float = 30.0  # seconds without a byte before a try counts as failed [> 0]
    connect_s: float = 10.0  # seconds for a connection to one address of a web host; all its addresses are tried [> 0]
    first_byte_s: float = 30.0  # seconds for the first byte of a web server's answer, which is asked twice [> 0]
    deadline_s: float = 1800.0  # seconds for one whole source [> 0]
    max_bytes: int = 16_000_000_000  # larger sources are quarantined (too_large) before they fill a disk [>= 1]
    redirects: int = 5  # http redirects followed for one source [>= 0]
    # refuse private network addresses, and files and s3:// objects outside the manifest's folder: for rows of strangers
    untrusted: bool = False
    proxy: str = ""  # http://host:port that web sources are fetched through; empty asks their servers directly
    proxy_filters: bool = False  # sources.proxy refuses private networks itself, so that it may serve untrusted rows
    # profile of the AWS configuration, with keys and an endpoint of its own, that reads all sources on s3://; empty
    # takes the environment's, and then sources.untrusted=true refuses s3:// rows outside the source's own folder
    s3_profile: str = ""
    # headers for web sources: {Authorization: MY_TOKEN} takes the value from the environment variable MY_TOKEN of each
    # machine; a value is in no plan, digest or log, and goes to no server that a row's own server redirects to
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.redirects < 0:
            raise ValueError(f"sources.attempts={self.attempts} must be at least 1, sources.redirects not negative")
        if min(self.timeout_s, self.deadline_s, self.max_bytes) <= 0:
            raise ValueError("sources.timeout_s, sources.deadline_s and sources.max_bytes must be positive")
        if min(self.connect_s, self.first_byte_s) <= 0:
            raise ValueError("sources.connect_s and sources.first_byte_s must be positive")
        if self.proxy:
            self._check_proxy()
        elif self.proxy_filters:
            raise ValueError("sources.proxy_filters=true says something of sources.proxy, which is empty; name it")
        for name, variable in self.headers.items():
            self._check_header(name, variable)

    def _check_proxy(self) -> None:
        if self.untrusted and not self.proxy_filters:
            raise ValueError(
                "sources.proxy cannot be used with sources.untrusted=true: only who connects can check the addresses; "
                "set sources.proxy=, or sources.proxy_filters=true where the proxy itself refuses private networks"
            )
        if not re.fullmatch(r"http://(\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]?#]+)(:\d{1,5})?/?", self.proxy):
            raise ValueError(
                "sources.proxy must be http://host:port without credentials; a proxy's password is given as "
                "sources.headers={Proxy-Authorization: NAME_OF_AN_ENVIRONMENT_VARIABLE}"
            )

    def _check_header(self, name: str, variable: str) -> None:
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or name.lower() in _OWN_HEADERS:
            raise ValueError(f"sources.headers: {name!r} is no header that can be set")
        if self.untrusted and name.lower() not in _HARMLESS_HEADERS:
            raise ValueError(
                f"sources.headers: {name!r} would be sent to every server that a stranger's manifest names; remove it "
                "or set sources.untrusted=false"
            )
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable):
            raise ValueError(
                f"sources.headers: the value of {name!r} must be the name of an environment variable, not the value "
                "itself"
            )

    def header_values(self, only: str = "") -> dict[str, str]:
        """The headers with their values in the environment of this machine.

        Args:
            only: the name of one header in lower case; "" gives all but the proxy's.
        Raises:
            MachineTrouble: a variable is not set on this machine, or holds what no header can. The value is not shown.
        """
        found = {}
        for name, variable in self.headers.items():
            if name.lower() != only if only else name.lower() == "proxy-authorization":
                continue
            value = os.environ.get(variable, "")
            if not value or not value.isprintable() or not value.isascii():
                raise MachineTrouble(
                    f"sources.headers: the environment variable {variable} is not set here, or holds more than "
                    "printable ASCII"
                )
            found[name] = value
        return found

    @property
    def retries(self) -> Retries:
        """How long a request to a store is tried."""
        return Retries(self.attempts, self.timeout_s)


@dataclass(kw_only=True)
class CaptionConfig:
    """Which captions are accepted."""

    required: bool = True  # a row without a caption is rejected (caption_missing)
    min_characters: int = 1  # shorter captions are rejected (caption_too_short) [>= 0]
    max_characters: int = 2000  # longer captions are rejected (caption_too_long) [>= 0]
    # share of characters that are letters of any script; fewer are rejected (caption_no_text) [0 ... 1]
    min_letters: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.min_characters <= self.max_characters:
            raise ValueError(
                f"caption.min_characters={self.min_characters} and caption.max_characters={self.max_characters} "
                "must satisfy 0 <= min_characters <= max_characters"
            )
        if not 0.0 <= self.min_letters <= 1.0:
            raise ValueError(f"caption.min_letters={self.min_letters} is a share: it must lie between 0 and 1")


class WrongRows(Enum):
    """What becomes of rows that cannot be used as they are written."""

    STRICT = "strict"  # nothing is planned, and the first twenty are listed
    RECORD = "record"  # each is a rejected row of the dataset, with the reason, and the others are built


@dataclass(kw_only=True)
class ColumnsConfig:
    """Which columns of a manifest hold what. A value is a column's name, or a template such as `videos/{id}.mp4`.

    The names in braces are columns, and `{number:06d}` writes a whole number with leading zeros.
    """

    video: str = "video"  # path or address of the video; a column or a template
    caption: str = "caption"  # the caption; a column or a template
    id: str = "id"  # name of the row, which no other row has; a column or a template
    start: str = "start"  # begin of the window: seconds, H:MM:SS.s or frames/fps; a column or a template
    end: str = "end"  # end of the window: seconds, H:MM:SS.s or frames/fps; a column or a template
    label: str = "label"  # the class; a column or a template
    split: str = "split"  # train, val or test; a column or a template
    times: str = ""  # column of [start, end] pairs, in place of `start` and `end`; empty: none
    explode: list[str] = field(default_factory=list)  # columns whose texts are lists too: captions, scores
    drop: list[str] = field(default_factory=list)  # columns that are left out: further ones, and `label`, `split`, ...

    def __post_init__(self) -> None:
        for key in TEMPLATE_KEYS:
            value = getattr(self, key)
            if not value:
                raise ValueError(f"columns.{key}= is empty; name a column, or leave the key away")
            template_parts(key, value)
            if value in self.drop and (value != key or key == "video"):
                raise ValueError(f"columns.drop leaves {value!r} out, and columns.{key} takes it; remove it from one")
        if self.times in self.drop:
            raise ValueError(f"columns.drop leaves {self.times!r} out, and columns.times takes it; remove it from one")
        if self.times and (self.start, self.end) != ("start", "end"):
            raise ValueError("columns.times holds start and end; set it, or columns.start and columns.end, not both")


TEMPLATE_KEYS = ("video", "caption", "id", "start", "end", "label", "split")
"""The keys of `ColumnsConfig` that take a template; also the columns that a manifest can have."""


def template_parts(key: str, text: str) -> list[tuple[str, str, str]]:
    """The parts of a template in order: (literal text, column, format). The column is "" where only text is left.

    Args:
        key: of `ColumnsConfig`, for messages.
        text: a column's name, which is the only part there is, or a template, which has at least two.
    Raises:
        ValueError: a brace without its partner, or a template that names no column.
    """
    if "{" not in text and "}" not in text:
        return [("", text, "")]
    try:
        parsed = list(Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"columns.{key}={text} is no template: {error}; write {{{{ for a brace itself") from error
    parts = [(literal, name or "", form or "") for literal, name, form, _ in parsed]
    if any(conversion for *_, conversion in parsed) or any("{" in form for *_, form in parts):
        raise ValueError(f"columns.{key}={text}: write {{column}} or {{column:06d}}, nothing else in braces")
    for form in (form for *_, form in parts if not _is_format(form)):
        raise ValueError(f"columns.{key}={text}: {form!r} is no format; write {{column}} or {{column:06d}}")
    if any(name == "" for _, name, _, _ in parsed if name is not None) or not any(name for _, name, _ in parts):
        raise ValueError(f"columns.{key}={text} names no column; write a column's name in braces")
    return [*parts, ("", "", "")] if len(parts) == 1 else parts


def _is_format(form: str) -> bool:
    """Whether a text or a whole number can be written so, in fewer than ten thousand characters."""
    if re.search(r"\d{5}", form):
        return False
    for value in ("", 0):
        with suppress(ValueError):
            format(value, form)
            return True
    return False
