"""What a dataset is made of: latents of clips, texts of latents."""

from __future__ import annotations

from data_pipeline.dataset.description import DatasetFile
from data_pipeline.dataset.kind import CLIPS, LATENTS, TEXTS
from data_pipeline.dataset.plan import Dataset
from data_pipeline.store.base import Store

_MADE_OF = {LATENTS.name: CLIPS, TEXTS.name: LATENTS}
"""Kind of a dataset -> the kind of the dataset that it is made of."""


def check_source(store: Store, source: Store, *, named: str) -> None:
    """Refuse a source that a dataset cannot be made of, before any of the two is read as a whole.

    Args:
        store: of the dataset.
        source: what is said to be its source.
        named: the option that names the source, for messages.
    Raises:
        ValueError: the dataset is of clips, or the source is no complete dataset of the kind that it is made of.
    """
    kind = Dataset.open(store).plan.kind
    of = _MADE_OF.get(kind.name)
    if of is None:
        raise ValueError(
            f"{named}{source.uri()}: {store.uri()} is a dataset of {kind.name}, which are made of no other dataset; "
            f"leave {named.strip()} out"
        )
    DatasetFile.load(source, of, named=named)
