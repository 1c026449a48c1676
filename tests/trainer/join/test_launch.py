"""Which launch a process belongs to, from the environments that launchers give."""

from __future__ import annotations

import pytest

from trainer.join.launch import Launch, Member, NotOneRun

WORLD = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500"}


def test_launches_differ_by_output_size_and_job() -> None:
    here = Launch("/runs/a", 4, "SLURM job 7")
    assert here.differences(Launch("/runs/a", 4, "SLURM job 7")) == {}
    other_output = here.differences(Launch("/runs/b", 4, "SLURM job 7"))
    assert other_output == {"output": "output=/runs/a there and output=/runs/b here"}
    assert here.differences(Launch("/runs/a", 8, "SLURM job 8")) == {
        "number of ranks": "4 ranks there and 8 here",
        "run id": "SLURM job 7 there and SLURM job 8 here",
    }
    assert here.differences(Launch("/runs/a", 4)) == {}  # a process that ssh started knows nothing of SLURM


@pytest.mark.parametrize(
    ("variables", "run_id"),
    [
        ({}, ""),
        ({"TORCHELASTIC_RUN_ID": "none"}, ""),  # torchrun without --rdzv-id
        ({"TORCHELASTIC_RUN_ID": "x1", "SLURM_JOB_ID": "7"}, "torchrun x1"),
        ({"SLURM_JOB_ID": "7"}, "SLURM job 7"),
    ],
)
def test_the_job_is_the_launchers_word_or_slurms(variables: dict[str, str], run_id: str) -> None:
    assert Launch.of_environment("/runs/a", WORLD | variables) == Launch("/runs/a", 4, run_id)


def test_one_output_named_from_two_folders_is_two_outputs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = []
    for name in ("one", "two"):
        folder = tmp_path_factory.mktemp(name)
        monkeypatch.chdir(folder)
        outputs.append((Launch.of_environment("run", WORLD).output, str(folder / "run")))
    assert [found for found, _ in outputs] == [expected for _, expected in outputs]


def test_a_member_is_where_the_launcher_put_it() -> None:
    member = Member.of_environment(WORLD)
    assert (member.rank, member.ranks, member.local_rank, member.where) == (3, 4, 1, "node-0:29500")
    assert not member.agent_store
    assert Member.of_environment(WORLD | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).agent_store
    assert member.name != Member.of_environment(WORLD).name


@pytest.mark.parametrize("variables", [{"MASTER_ADDR": ""}, {"MASTER_PORT": "http"}, {"MASTER_PORT": "70000"}])
def test_no_address_is_refused_with_the_variables(variables: dict[str, str]) -> None:
    with pytest.raises(NotOneRun, match=r"4 ranks meet at MASTER_ADDR=.* MASTER_PORT=.*, which is no address"):
        Member.of_environment(WORLD | variables)
    assert Member.of_environment(WORLD | variables | {"WORLD_SIZE": "1", "RANK": "0"}).ranks == 1
