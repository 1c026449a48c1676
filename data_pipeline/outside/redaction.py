"""Takes secrets out of text before it leaves: to a console, a file, a record of the dataset, or another process.

What counts as a secret: the user and password of an address; the values of parameters that sign an address or log in,
under the names that stores, clouds and content networks give them, also where the name is percent-encoded or stands
behind `#`; what a header `Authorization`, `Cookie`, `X-...-Key` or `X-...-Token` holds; and the values of environment
variables that are named like a secret.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote, quote_plus, unquote, urlsplit

HIDDEN = "***"
"""What stands in the place of a secret."""
USERINFO = r"(?i)\b[a-z][a-z0-9+.-]*://[^/?#\s\"]*@"
"""An address with a user name. Like `SIGNATURE`, in the common part of Python's regular expressions and RE2's."""
_NAME = (
    r"(?:[\w.-]*(?:signature|token|secret|passw|credential|session|sessid|jwt|hmac|accessid|access_?key|api_?key|auth_?key)"
    r"[\w.-]*|(?:[\w.-]*[-_.])?(?:key|sig|sign|auth|authorization|bearer|sid|pass|pwd|ak|ticket|verify|policy|gda__"
    r"|hdnea|hdnts|hdntl|key-pair-id))"
)
_INDEX = r"(?:\[[^\]=]{0,40}\])?"
"""PHP and its like write lists as `token[]=` and `token[0]=`."""
SIGNATURE = rf"(?i)[?&;#]{_NAME}{_INDEX}="
"""A parameter of an address that signs it or logs in."""
ENCODED = r"(?i)%[0-9a-f]{2}[^/\s]*(=|%3d|%253d)"
"""What may be such a parameter with percent-encoded characters in its name; `holds_secret` decides."""
_PARAMETER = re.compile(rf"(?i)([?&;#]{_NAME}{_INDEX}=)[^&;#\s\"'<>]*")
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/?#\s\"'<>]*@")
_HEADER = re.compile(
    r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?:[a-z][a-z0-9-]*)\s[^\"'\r\n]+"
    r"|(\b(?:set-cookie|cookie|x-[a-z0-9-]*(?:key|token|secret|signature))[\"']?:\s*[\"']?)[^\"'\s][^\"'\r\n]*"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}")
_ENCODED_WORD = re.compile(r"[^\s\"'<>]*%[0-9A-Fa-f]{2}[^\s\"'<>]*")
_QUERY = re.compile(r"(?i)[?&;#]|%(?:25)*(?:3f|26|3b|23)")
_SECRET_VARIABLE = re.compile(r"(?i)(^|_)(secret|token|password|passwd|passphrase|credentials?|apikey|key)(_|$)")
_SHORTEST = 8
"""Characters of an environment variable's value below which it could be any word of a message."""


def holds_secret(text: str) -> bool:
    """Whether a text holds an address with credentials, or one that is signed, in any of the ways named above."""
    for _ in range(3):  # as it stands, and percent-decoded once and twice
        if re.search(USERINFO, text) or re.search(SIGNATURE, text):
            return True
        text = unquote(text)
    return False


def redacted(text: str) -> str:
    """The text with `***` in the place of each secret. A text without secrets stays as it is."""
    for value in _environment_secrets(os.environ):
        text = text.replace(value, HIDDEN)
    if "://" in text:
        text = _USER.sub(rf"\1{HIDDEN}@", text)
    if "=" in text:
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    if "%" in text:
        text = _ENCODED_WORD.sub(_without_query, text)
    return _BEARER.sub(rf"\1{HIDDEN}", _HEADER.sub(_header, text))


def _header(found: re.Match[str]) -> str:
    return (found[1] or found[2]) + HIDDEN


def _without_query(word: re.Match[str]) -> str:
    """A word with percent-encoded characters, up to the first parameter where one of them is a secret."""
    text = word[0]
    plain = unquote(unquote(text))
    if HIDDEN in text or not holds_secret(plain):
        return text
    if re.search(USERINFO, plain):
        return HIDDEN
    start = _QUERY.search(text)
    return text[: start.end() if start else 0] + HIDDEN


def _environment_secrets(environment: Mapping[str, str]) -> Iterator[str]:
    """The values to hide, the longest form of each first."""
    for name, value in environment.items():
        if _SECRET_VARIABLE.search(name):
            yield from _forms(value, may_be_path="SECRET_ACCESS_KEY" not in name)
        elif "://" in value and "@" in value:
            try:
                password = urlsplit(value).password
            except ValueError:
                continue
            yield from _forms(password or "", may_be_path=False)


def _forms(value: str, *, may_be_path: bool) -> Iterator[str]:
    if len(value) < _SHORTEST or (may_be_path and os.path.exists(value)):
        return
    yield from sorted({value, quote(value, safe=""), quote(value), quote_plus(value), unquote(value)}, key=len)[::-1]


@contextmanager
def errors_without_secrets() -> Iterator[None]:
    """What the block raises leaves it without secrets: in its text, in its causes and in its traceback.

    An error without secrets passes as it is. One with secrets keeps its type where its text can be replaced.

    Raises:
        RuntimeError: in the place of an error whose text could not be replaced.
    """
    try:
        yield
    except Exception as error:
        whole = "".join(traceback.format_exception(error))
        if redacted(whole) == whole:
            raise
        words = redacted(str(error))
        error.args = tuple(redacted(item) if isinstance(item, str) else item for item in error.args)
        if str(error) == words:
            raise error.with_traceback(None) from None
        raise RuntimeError(f"{type(error).__name__}: {words}") from None
