"""Model directories at addresses such as s3://bucket/model.

This package knows no stores. Whoever does offers a function under the entry points' group `vidtwin.fetch`, by scheme;
setup.py names data_pipeline's there.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path

Fetch = Callable[[str, Sequence[str], Path], None]
"""(address, names of files below it, local folder that they are copied to)."""


def fetcher(uri: str) -> Fetch:
    """The function for the scheme of an address.

    Raises:
        ValueError: nothing installed understands it.
    """
    scheme = uri.partition("://")[0]
    for point in entry_points(group="vidtwin.fetch", name=scheme):
        fetch: Fetch = point.load()
        return fetch
    known = sorted({point.name for point in entry_points(group="vidtwin.fetch")})
    raise ValueError(
        f"{uri}: no installed package reads {scheme}:// (there is {', '.join(known) or 'none'}); copy the model "
        "directory to a local path, or install this package as setup.py describes it (pip install -e .)"
    )
