"""Samplers against what a perfect predictor knows, and samples against those of other batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.dit import DiT
from model.dit_config import Conditioning, DiTConfig, LatentSpace, NoiseSchedule, Objective, ProcessConfig
from model.network import Latents
from tests.tools.extras import NEEDS_DIFFUSERS
from trainer.sampling.generate import Sampling, generate, wanted_samples
from trainer.sampling.sampler import guided, sample, seeds_of

pytestmark = NEEDS_DIFFUSERS
SPACE = LatentSpace(structure_shape=(3, 4, 2, 2), dynamics_shape=(2, 4, 4), classes=("a", "b"))
CPU = torch.device("cpu")
PROCESSES = [
    *(ProcessConfig(schedule=schedule) for schedule in NoiseSchedule),
    ProcessConfig(zero_terminal_snr=True),
    ProcessConfig(objective=Objective.flow),
    ProcessConfig(objective=Objective.flow, shift=3.0),
]


def tiny_dit(process: ProcessConfig) -> DiT:
    torch.manual_seed(0)
    config = DiTConfig(width=24, depth=2, heads=2, condition=Conditioning.class_, class_width=5)
    dit = DiT(config, SPACE, process)
    with torch.no_grad():
        for weight in dit.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return dit.eval()


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_x0_of_a_perfect_predictor_is_recovered(process: ProcessConfig, steps: int) -> None:
    source = torch.Generator().manual_seed(3)
    clean = Latents(*(torch.randn(2, *s, generator=source) for s in (SPACE.structure_shape, SPACE.dynamics_shape)))
    told: list[float] = []

    def perfect(noisy: Latents, times: Tensor) -> Latents:
        told.append(float(times[0]))
        if process.objective is Objective.x0:
            return clean
        return Latents(*((x - x0) / (told[-1] / 1000) for x, x0 in zip(noisy, clean, strict=True)))

    found = sample(perfect, SPACE, process, [1, 2], steps=steps, device=CPU)
    for values, expected in zip(found, clean, strict=True):
        torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    assert len(told) == steps
    assert told == sorted(told, reverse=True)
    assert told[0] == (process.steps - 1 if process.objective is Objective.x0 else 1000)


@pytest.mark.parametrize("objective", Objective)
def test_a_sample_depends_neither_on_its_batch_nor_on_the_others(objective: Objective, tmp_path: Path) -> None:
    dit = tiny_dit(ProcessConfig(objective=objective))
    sampling = Sampling(weights="w", autoencoder="", seed=7, steps=10, guidance=3.0)
    wanted = wanted_samples(dit, [], 3)
    for batch in (1, 4, 6):
        assert generate(dit, sampling, wanted, tmp_path / str(batch), batch=batch) == 6
    values = [
        {item.name: load_file(tmp_path / str(batch) / f"{item.name}.safetensors") for item in wanted}
        for batch in (1, 4, 6)
    ]
    for other in values[1:]:
        for name, tensors in values[0].items():
            for key, tensor in tensors.items():
                torch.testing.assert_close(other[name][key], tensor, rtol=1e-4, atol=1e-5)
    structures = [tensors["structure"] for tensors in values[0].values()]
    assert all(not a.allclose(b) for n, a in enumerate(structures) for b in structures[:n]), "each sample is another"


def test_samples_are_written_in_the_numbers_of_the_latents_and_not_normalised(tmp_path: Path) -> None:
    """x deviation + mean in each channel, which the halves of the dynamics along w and along h have of their own."""
    dit = tiny_dit(ProcessConfig())
    for kind, mean, deviation in (
        ("structure", [5.0, -3.0, 0.5], [2.0, 0.25, 4.0]),
        ("dynamics_w", [7.0, -9.0], [0.5, 3.0]),
        ("dynamics_h", [-1.0, 20.0], [8.0, 0.125]),
    ):
        dit.normaliser.get_buffer(f"{kind}_mean").copy_(torch.tensor(mean))
        dit.normaliser.get_buffer(f"{kind}_deviation").copy_(torch.tensor(deviation))
    sampling = Sampling(weights="w", autoencoder="", seed=7, steps=10, guidance=3.0)
    (item,) = wanted_samples(dit, ["b"], 1)
    generate(dit, sampling, [item], tmp_path, batch=1)
    found = load_file(tmp_path / f"{item.name}.safetensors")
    plain = sample(guided(dit, ["b"], 3.0), SPACE, dit.process, seeds_of(7, "b", [0]), steps=10, device=CPU)
    for channel, (mean, deviation) in enumerate([(5.0, 2.0), (-3.0, 0.25), (0.5, 4.0)]):
        torch.testing.assert_close(found["structure"][channel], plain.structure[0, channel] * deviation + mean)
    for channel, (w, h) in enumerate([((7.0, 0.5), (-1.0, 8.0)), ((-9.0, 3.0), (20.0, 0.125))]):
        for half, (mean, deviation) in zip((slice(0, 2), slice(2, 4)), (w, h), strict=True):
            dynamics = plain.dynamics[0, channel, :, half] * deviation + mean
            torch.testing.assert_close(found["dynamics"][channel, :, half], dynamics)


def test_samples_that_exist_are_kept_and_other_settings_are_refused(tmp_path: Path) -> None:
    dit = tiny_dit(ProcessConfig())
    sampling = Sampling(weights="w", autoencoder="", seed=7, steps=10, guidance=3.0)
    assert generate(dit, sampling, wanted_samples(dit, ["b"], 2), tmp_path, batch=2) == 2
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.safetensors")}
    assert generate(dit, sampling, wanted_samples(dit, [], 2), tmp_path, batch=3) == 2
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    with pytest.raises(ValueError, match=r"holds samples of other settings \(seed: 7 -> 8\)"):
        generate(dit, replace(sampling, seed=8), [], tmp_path, batch=1)
    with pytest.raises(ValueError, match="--steps 7 does not divide the 1000 steps"):
        generate(dit, replace(sampling, steps=7), [], tmp_path / "new", batch=1)
    with pytest.raises(ValueError, match="class 'c' is not one of the model's: a, b"):
        wanted_samples(dit, ["c"], 1)


def test_samples_that_need_too_much_memory_together_name_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("trainer.sampling.generate._make", full)
    dit, sampling = tiny_dit(ProcessConfig()), Sampling(weights="w", autoencoder="", seed=7, steps=10, guidance=3.0)
    with pytest.raises(ValueError, match=r"^--batch 2 needs more memory than there is \(CUDA out of memory\.\)"):
        generate(dit, sampling, wanted_samples(dit, ["b"], 2), tmp_path, batch=2)


def test_guidance_goes_from_the_dropped_condition_through_the_given_one() -> None:
    dit = tiny_dit(ProcessConfig())
    noisy, times = Latents(torch.randn(1, *SPACE.structure_shape), torch.randn(1, *SPACE.dynamics_shape)), torch.ones(1)
    with torch.no_grad():
        none, one, two = (guided(dit, ["a"], guidance)(noisy, times).structure for guidance in (0.0, 1.0, 2.0))
    assert not none.allclose(one)
    torch.testing.assert_close(two - one, one - none, rtol=1e-4, atol=1e-5)


def test_seeds_differ_by_class_and_number() -> None:
    seeds = [*seeds_of(1, "a", range(3)), *seeds_of(1, "b", range(3)), *seeds_of(2, "a", range(3))]
    assert len(set(seeds)) == 9
    assert seeds_of(1, "a", [2]) == seeds[2:3]
