"""Files of a model directory, or statistics of latents, from an s3:// address.

One or two small files, read once: boto3's own retries do. (data_pipeline's stores are not this package's to know.)
"""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit


def fetch(uri: str, names: Sequence[str], folder: Path) -> None:
    """Copy `uri/name`, for each name, to `folder/name`. `AWS_ENDPOINT_URL` chooses another S3 than Amazon's.

    Raises:
        FileNotFoundError: one of them, or the bucket, does not exist.
        OSError: the store refuses or does not answer.
        ValueError: another scheme, or no bucket.
    """
    parts = urlsplit(uri)
    if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc:
        place = uri.replace(parts.netloc, parts.netloc.rpartition("@")[2]) if parts.netloc else uri
        raise ValueError(f"{place} cannot be read from; name a local folder, or s3://bucket/prefix without credentials")
    import boto3  # 0.3 s to import, and only needed here
    from boto3.exceptions import Boto3Error, RetriesExceededError
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.session.Session().client("s3")
    for name in names:
        key = f"{parts.path.strip('/')}/{name}".lstrip("/")
        try:
            client.download_file(parts.netloc, key, str(folder / name))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            kind = FileNotFoundError if code in ("404", "NoSuchKey", "NoSuchBucket") else OSError
            raise kind(f"s3://{parts.netloc}/{key} cannot be read ({code})") from error
        except RetriesExceededError as error:  # what was sent broke off each time
            raise OSError(f"s3://{parts.netloc}/{key} cannot be read ({error.last_exception})") from error
        except (BotoCoreError, Boto3Error) as error:
            raise OSError(f"s3://{parts.netloc}/{key} cannot be read ({error})") from error
