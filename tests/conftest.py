"""Fixtures every package's tests may ask for: one real S3 server a session."""

from tests.data_pipeline.gateway import s3_gateway, s3_uri

__all__ = ["s3_gateway", "s3_uri"]
