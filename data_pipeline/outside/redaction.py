"""Takes secrets out of text before it leaves: to a console, a file, a record of the dataset, or another process.

What counts as a secret: the user and password of an address; the values of parameters that sign an address or log in,
under the names that stores, clouds and content networks give them, also where the name is percent-encoded or stands
behind `#`; what a header `Authorization`, `Cookie`, `X-...-Key` or `X-...-Token` holds; what stands behind the name of
a secret, as in `password=...`; and the values of environment variables that are named like a secret.
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
_PLACE = r"[^/?#\s\"'<>]"
USERINFO = rf"(?i)[a-z0-9+.-]://{_PLACE}*@|(?:^|[\s\"'(<=,])//[^/?#\s\"'<>:@]*:{_PLACE}*@"
"""An address with a user name; where it has no scheme, one with a password, too. Like `SIGNATURE` and `PERHAPS`, in the
common part of Python's regular expressions and RE2's."""
_NAME = (
    r"(?:[\w.-]*(?:signature|token|secret|passw|credential|session|sessid|jwt|hmac|accessid|access_?key|api_?key|auth_?key)"
    r"[\w.-]*|(?:[\w.-]*[-_.])?(?:key|sig|sign|auth|authorization|bearer|sid|pass|pwd|ak|ticket|verify|policy|gda__"
    r"|hdnea|hdnts|hdntl|key-pair-id))"
)
_INDEX = r"(?:\[[^\]=]{0,40}\])?"
"""PHP and its like write lists as `token[]=` and `token[0]=`."""
SIGNATURE = rf"(?i)[?&;#]{_NAME}{_INDEX}="
"""A parameter of an address that signs it or logs in. Only for RE2: Python's search takes the square of the length."""
PERHAPS = r"(?i)%[0-9a-f]{2}[^/\s]*(?:=|%3d|%253d)|[?&;#](?:md5|hash)="
"""What may be such a parameter, its name percent-encoded, or a digest beside a date; `holds_secret` decides."""

# Every expression below takes a time that grows as the text does: a run of characters ends where the next one begins,
# or its length is bounded. Texts of strangers may have millions of characters.
_WORD = re.compile(r"[^\s\"'<>]+")
_PARAMETER = re.compile(r"([?&;#])([^?&;#=]*)=[^?&;#]*(?:\?[^?&;#=]*(?=[?&;#]|$))*")
_INDEXED = re.compile(rf"{_INDEX}$")
_SIGNS_ANYWHERE = re.compile(
    r"signature|token|secret|passw|credential|session|sessid|jwt|hmac|accessid|access_?key|api_?key|auth_?key"
)
_SIGNS_AT_END = re.compile(
    r"(?:^|[-_.])(?:key|sig|sign|auth|authorization|bearer|sid|pass|pwd|ak|ticket|verify|policy|gda__|hdnea|hdnts|hdntl"
    r"|key-pair-id)$"
)
_SIGNS_WITH_DATE = frozenset({"md5", "hash"})
"""What signs an address that ends at some time; without a date it is the digest of a file."""
_DATES = frozenset({"e", "exp", "expire", "expires", "expiry", "expiration", "ttl", "deadline", "se", "validto"})
_HIDDEN_IN_ADDRESS = frozenset({"md5", "hash", "code"})
"""Hidden in the query of an address that is shown, since it may let somebody in; no reason to refuse the address."""
_USER = re.compile(rf"(?i)([a-z0-9+.-]://){_PLACE}*@")
_USER_WITHOUT_SCHEME = re.compile(rf"((?:^|(?<=[\s\"'(<=,]))//)[^/?#\s\"'<>:@]*:{_PLACE}*@")
_HEADER = re.compile(
    r"(?i)(authorization[\"']?\s*[:=]\s*[\"']?)(?:[a-z][a-z0-9-]*)\s[^\"'\r\n]+"
    r"|(\b(?:set-cookie|cookie|x-[a-z0-9-]{0,64}(?:key|token|secret|signature))[\"']?:\s*[\"']?)[^\"'\s][^\"'\r\n]*"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)[a-z0-9._~+/=-]{8,}")
_LONG_NAME = (
    r"secret[_-]?(?:access[_-]?)?key|(?:client|app|shared)[_-]?secret|(?:api|private|account)[_-]?key"
    r"|(?:access|auth|refresh|session|security|id)[_-]?token"
)
_VALUE = r"[^\s\"'&;,<>]+"
_SAID = re.compile(
    rf"(?i)((?<![\w.-])[\w.-]{{0,40}}?(?:{_LONG_NAME}|passw(?:or)?d|passphrase|secret)"
    rf"(?:[\"']?\s{{0,8}}=\s{{0,8}}[\"']?|[\"']\s{{0,8}}:\s{{0,8}}[\"']))(?!\*\*\*){_VALUE}"
    rf"|((?<![\w.-])[\w.-]{{0,40}}?(?:{_LONG_NAME})\s{{0,8}}:\s{{0,8}})(?!\*\*\*){_VALUE}"
    rf"|((?<![\w.-])(?:token|pwd)\s{{0,8}}=\s{{0,8}}[\"']?)(?=[0-9._-]*[a-z])[\w./+~-]{{8,}}"
)
"""A secret beside its name, as programs print their settings. Words that are no names of secrets are left alone, as are
short ones that name other things, too: `key=value`, `code=red`, `token=3`."""
_QUERY = re.compile(r"(?i)[?&;#]|%(?:25)*(?:3f|26|3b|23)")
_SECRET_VARIABLE = re.compile(r"(?i)(^|_)(secret|token|password|passwd|passphrase|credentials?|apikey|key)(_|$)")
_SHORTEST = 8
"""Characters of an environment variable's value below which it could be any word of a message."""


def holds_secret(text: str) -> bool:
    """Whether a text holds an address with credentials, or one that is signed, in any of the ways named above."""
    for _ in range(3):  # as it stands, and percent-decoded once and twice
        if "//" in text and re.search(USERINFO, text):
            return True
        if "=" in text and any(_is_signed(word[0]) for word in _WORD.finditer(text)):
            return True
        text = unquote(text)
    return False


def redacted(text: str) -> str:
    """The text with `***` in the place of each secret. A text without secrets stays as it is."""
    for value in _environment_secrets(os.environ):
        text = text.replace(value, HIDDEN)
    if "//" in text:
        text = _USER_WITHOUT_SCHEME.sub(rf"\1{HIDDEN}@", _USER.sub(rf"\1{HIDDEN}@", text))
    if "=" in text or "%" in text:
        text = _WORD.sub(_shown_word, text)
    return _SAID.sub(_named, _BEARER.sub(rf"\1{HIDDEN}", _HEADER.sub(_named, text)))


def _signs(name: str) -> bool:
    """Whether the name of a parameter says that its value signs the address or logs in."""
    plain = _INDEXED.sub("", name.lower())
    return bool(_SIGNS_ANYWHERE.search(plain) or _SIGNS_AT_END.search(plain))


def _is_signed(word: str) -> bool:
    names = {found[2] for found in _PARAMETER.finditer(word)}
    lower = {name.lower() for name in names}
    return any(_signs(name) for name in names) or bool(lower & _SIGNS_WITH_DATE and lower & _DATES)


def _shown_word(word: re.Match[str]) -> str:
    text = word[0]
    if "=" in text:
        hidden = _HIDDEN_IN_ADDRESS if "://" in text else frozenset[str]()
        text = _PARAMETER.sub(lambda found: _shown_parameter(found, hidden), text)
    return _without_query(text) if "%" in text else text


def _shown_parameter(found: re.Match[str], hidden: frozenset[str]) -> str:
    secret = _signs(found[2]) or found[2].lower() in hidden
    return f"{found[1]}{found[2]}={HIDDEN}" if secret else found[0]


def _named(found: re.Match[str]) -> str:
    return next(group for group in found.groups() if group) + HIDDEN


def _without_query(text: str) -> str:
    """A word with percent-encoded characters, up to the first parameter where one of them is a secret."""
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
