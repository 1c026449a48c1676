"""Makes the client of an S3 store: with the environment's credentials, or with a profile's and nothing else.

The client is botocore's, the core of boto3. What boto3 adds is not used, and each of its sessions would read Amazon's
descriptions of its services anew, which takes nearly all of the time that a client takes: they are read once a process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader

from data_pipeline.store.base import NotConfigured

_OF_THE_MACHINE = frozenset({"env", "iam-role", "container-role", "ec2-credentials-file", "boto-config"})
"""Where botocore finds credentials beside a profile: they are those of this machine, whatever the profile is."""


@dataclass(frozen=True)
class S3Access:
    """The credentials, and the way to the server, by which a store is asked."""

    profile: str = ""  # of the AWS configuration; "" takes what the environment gives
    direct: bool = False  # without the proxies of the environment


USUAL_ACCESS = S3Access()


def s3_client(timeout_s: float, access: S3Access = USUAL_ACCESS) -> Any:
    """A client of S3.

    With a profile, its keys and its `endpoint_url` are taken from the AWS configuration alone: neither variables of
    the environment such as `AWS_ENDPOINT_URL` nor the role of this machine take the place of what it lacks.

    Args:
        timeout_s: seconds without a byte after which a request fails.
        access: whose credentials.
    Raises:
        NotConfigured: there is no such profile, or it has no keys.
        BotoCoreError, ValueError: the environment's settings are wrong.
    """
    config = _config(timeout_s, access)
    session = botocore.session.Session(profile=access.profile or None)
    if not access.profile:
        _share_descriptions(session)
        return session.create_client("s3", config=config)
    named = f"sources.s3_profile={access.profile}"
    try:
        _share_descriptions(session)
        credentials = session.get_credentials()
        endpoint = _endpoint(session)
    except BotoCoreError as error:
        raise NotConfigured(f"{named}: {error}; name a profile of this machine's AWS configuration") from error
    if credentials is None or credentials.method in _OF_THE_MACHINE:
        raise NotConfigured(f"{named} has no keys of its own; give the profile keys in the AWS configuration")
    config = config.merge(Config(ignore_configured_endpoint_urls=True))
    return session.create_client("s3", endpoint_url=endpoint, config=config)


def _share_descriptions(session: botocore.session.Session) -> None:
    session.register_component("data_loader", _descriptions(session.get_config_variable("data_path")))


@cache
def _descriptions(data_path: str | None) -> Loader:
    """What reads the descriptions, and keeps what it has read, for all sessions that look in these folders."""
    return create_loader(data_path)


def _endpoint(session: botocore.session.Session) -> str | None:
    """The endpoint that a profile names for S3 or for all services; None means Amazon's."""
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    endpoint: str | None = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    return endpoint


def _config(timeout_s: float, access: S3Access) -> Config:
    return Config(
        retries={"total_max_attempts": 1, "mode": "standard"},  # off: two nested retry policies would multiply
        connect_timeout=min(timeout_s, 10.0),
        read_timeout=timeout_s,
        max_pool_connections=32,
        # Not every S3 server supports the newer trailing checksums; every server checks Content-MD5.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        proxies={} if access.direct else None,
    )
