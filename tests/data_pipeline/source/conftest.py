"""Fetches from a web server of the test, with nothing known of any host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.source import connection, http
from data_pipeline.source.config import SourcesConfig
from data_pipeline.source.fetch import Sources
from data_pipeline.source.hosts import Hosts
from tests.data_pipeline.source.web_site import Site


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing is known of any host, and pauses between tries are only written down."""
    found: list[float] = []
    monkeypatch.setattr(http.time, "sleep", found.append)
    fresh = Hosts()
    for module in (http, connection):
        monkeypatch.setattr(module, "HOSTS", fresh)
    return found


@pytest.fixture
def site(pauses: list[float]) -> Site:
    return Site()


@pytest.fixture
def fetch(tmp_path: Path, pauses: list[float]) -> Callable[..., bytes]:
    def get(url: str, **limits: Any) -> bytes:
        path = Sources("/nowhere", SourcesConfig(**({"attempts": 4, "timeout_s": 60.0} | limits))).fetch(url, tmp_path)
        data = path.read_bytes()
        path.unlink()
        return data

    return get
