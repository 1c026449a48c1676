"""Fixtures shared by the tests of the data pipeline."""

from tests.data_pipeline.gateway import s3_gateway, s3_uri

__all__ = ["s3_gateway", "s3_uri"]
