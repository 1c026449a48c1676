"""The nearest samples, against a table of all distances in NumPy."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.read.latent_dataset import LatentDataset
from tests.data_pipeline.latents_dataset import make_clips, write_latents
from trainer.latents.neighbours import nearest


def points(dataset: LatentDataset) -> np.ndarray:
    """The squared distance of two rows is the sum of both latents' mean squared differences."""
    rows = []
    for number in range(len(dataset)):
        item = dataset[number]
        parts = [item[name].double().numpy().ravel() for name in ("structure", "dynamics")]
        rows.append(np.concatenate([part / np.sqrt(part.size) for part in parts]))
    return np.stack(rows)


def test_the_nearest_are_those_of_a_table_of_all_distances(tmp_path: Path) -> None:
    write_latents(tmp_path, [make_clips(9), make_clips(4, split="val")])
    asked, among = (LatentDataset(str(tmp_path), split, normalize=True) for split in ("val", "train"))
    table = ((points(asked)[:, None] - points(among)[None]) ** 2).sum(-1)
    distances, numbers = nearest(asked, among, 3)
    assert numbers.tolist() == np.argsort(table, 1)[:, :3].tolist()
    np.testing.assert_allclose(distances.numpy(), np.sort(table, 1)[:, :3], rtol=1e-12)
    itself, numbers = nearest(among, among, 1)
    assert (numbers[:, 0].tolist(), itself.max()) == (list(range(len(among))), 0.0)
    assert nearest(asked, among, 1000)[1].shape == (len(asked), len(among))


def test_structure_and_dynamics_count_alike(tmp_path: Path) -> None:
    write_latents(tmp_path, [make_clips(9)])
    dataset = LatentDataset(str(tmp_path), normalize=True)
    item = dataset[0]
    sizes = [item[name].numel() for name in ("structure", "dynamics")]
    assert sizes[0] != sizes[1]
    squares = (points(dataset) ** 2).mean(0)
    shares = [squares[: sizes[0]].sum(), squares[sizes[0] :].sum()]
    assert shares == pytest.approx([1.0, 1.0], rel=1e-3)  # normalised channels have a mean square of 1
