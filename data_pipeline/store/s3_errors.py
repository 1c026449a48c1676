"""What the errors of boto3 mean: the request is wrong, the credentials are, the object is missing, or it may pass."""

from __future__ import annotations

from botocore.exceptions import (
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    InvalidDNSNameError,
    InvalidHostLabelError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    UnsupportedOutpostResourceError,
    UnsupportedS3AccesspointConfigurationError,
    UnsupportedS3ArnError,
)

from data_pipeline.outside.redaction import redacted
from data_pipeline.store.base import CredentialsRefused, RequestRefused, StoreError

_TRANSIENT_CODES = frozenset(
    {
        *("RequestTimeout", "RequestTimeoutException", "SlowDown", "InternalError", "ServiceUnavailable"),
        *("Throttling", "ThrottlingException", "TooManyRequests", "BandwidthLimitExceeded"),
        *("BadDigest", "IncompleteBody", "OperationAborted", "ConditionalRequestConflict", "PriorRequestNotComplete"),
    }
)
_CREDENTIAL_CODES = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "UnrecognizedClientException"),
        *("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"),
        *("RequestTimeTooSkewed", "MissingSecurityHeader", "InvalidSecurity", "NotSignedUp", "AccountProblem"),
    }
)
"""What a store answers to every request of a machine whose credentials or clock are wrong."""
_WRONG_REQUEST = (
    *(ParamValidationError, InvalidDNSNameError, InvalidHostLabelError, UnsupportedS3ArnError),
    *(UnsupportedS3AccesspointConfigurationError, UnsupportedOutpostResourceError),
)
"""What boto3 refuses without asking the store: a bucket's or a key's name is none."""
_MAY_PASS = frozenset({408, 409, 412, 429})
"""Statuses below 500 that say nothing against the request: the object was just changing, or the store is busy."""
_MISSING_CODES = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "404"})


def refusal_of(error: Exception, uri: str, bucket: str) -> OSError | None:
    """What to raise for a failed request, or None when another try may succeed.

    Args:
        error: a BotoCoreError, ClientError or OSError.
        uri: address of the object, for the message.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return CredentialsRefused(
            f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        )
    if isinstance(error, ClientError):
        return _refusal_of_answer(error, uri, bucket)
    if isinstance(error, _WRONG_REQUEST):
        return RequestRefused(f"{uri}: {' '.join(redacted(str(error)).split())}")
    if isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError | OSError):
        return None
    return StoreError(f"{uri}: {redacted(str(error))}")


def _refusal_of_answer(error: ClientError, uri: str, bucket: str) -> OSError | None:
    code, status, words = str(error.response.get("Error", {}).get("Code", "")), status_of(error), _words(error)
    if code in _MISSING_CODES or (status == 404 and not code.startswith("NoSuchUpload")):
        hint = f" (the bucket {bucket!r} does not exist)" if code == "NoSuchBucket" else ""
        return FileNotFoundError(f"{uri} does not exist{hint}")
    if code in _TRANSIENT_CODES or status >= 500 or status in (408, 429):
        return None
    if code in _CREDENTIAL_CODES or status == 401:
        return CredentialsRefused(f"{uri}: the store refused ({words}); check the credentials")
    if status == 403:
        return PermissionError(f"{uri}: the store refused ({words}); check the credentials' rights")
    wrong = status not in _MAY_PASS and not code.startswith("NoSuchUpload")
    return (RequestRefused if wrong else StoreError)(f"{uri}: {words}")


def status_of(error: ClientError) -> int:
    """The HTTP status of an answer, 0 where there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _words(error: ClientError) -> str:
    """The store's own words on one line: code and message."""
    answer = error.response.get("Error", {})
    code, message = str(answer.get("Code", "")) or str(status_of(error)), str(answer.get("Message") or "")
    return " ".join(f"{code}: {message}".split()) if message and message != "None" else code
