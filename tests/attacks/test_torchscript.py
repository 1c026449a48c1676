"""TorchScript networks of a stranger write to no file of the operator, when they are loaded and when they run."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.torchscript import load_script

pytestmark = pytest.mark.timeout(60)
CPU = torch.device("cpu")


class Overwrites(nn.Module):
    """It maps a file of the operator into memory, and changes it there."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, video: Tensor) -> Tensor:
        held = torch.from_file(self.victim, True, 8, dtype=torch.uint8)
        held.fill_(65)
        return video.flatten(1) + held.sum()


class Saves(nn.Module):
    """It writes a file of its own."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def forward(self, video: Tensor) -> Tensor:
        torch.save(video, self.victim)
        return video.flatten(1)


class Loaded(nn.Module):
    """It does so while it is loaded."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.victim, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        held = torch.from_file(state[0], True, 8, dtype=torch.uint8)
        held.fill_(65)
        self.victim, self.training = state[0], bool(held.sum() > 0)

    def forward(self, video: Tensor) -> Tensor:
        return video.flatten(1)


class Computes(nn.Module):
    """A network as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, video: Tensor) -> Tensor:
        return self.layer(video.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("network", [Overwrites, Saves, Loaded])
def test_a_network_that_writes_to_files_is_refused_and_not_run(network: type[nn.Module], tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"original")
    torch.jit.script(network(str(victim))).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"its code holds an operation on files .* nothing was run"):
        load_script(tmp_path / "net.pt", CPU)
    assert victim.read_bytes() == b"original"


def test_a_network_that_computes_gives_what_it_gave(tmp_path: Path) -> None:
    network, video = Computes().eval(), torch.rand(3, 4)
    torch.jit.script(network).save(str(tmp_path / "net.pt"))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        assert torch.equal(load_script(tmp_path / "net.pt", CPU)(video), network(video))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"return", b"ops.rpc.rpc_sync\n    return"),
        (b"return", b"_1 = torch . from_file(_0)\n    return"),
        (b"Tensor:", b"__torch__.torch.classes.dist_rpc.WorkerInfo:"),
    ],
)
def test_code_that_is_written_by_hand_is_refused_as_well(old: bytes, new: bytes, tmp_path: Path) -> None:
    torch.jit.script(Computes()).save(str(tmp_path / "good.pt"))  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "net.pt", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, data.replace(old, new) if name.endswith(".py") else data)
    with pytest.raises(ValueError, match="nothing"):
        load_script(tmp_path / "net.pt", CPU)


def test_an_object_of_another_library_in_the_pickle_alone_is_refused(tmp_path: Path) -> None:
    torch.jit.script(Computes()).save(str(tmp_path / "good.pt"))  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "net.pt", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith("data.pkl"):
                assert b"__torch__." in data
                data = data.replace(b"__torch__.", b"__torch__.torch.classes.")
            bad.writestr(name, data)
    with pytest.raises(ValueError, match=r"data\.pkl holds an object of another library \(torch\.classes\); nothing"):
        load_script(tmp_path / "net.pt", CPU)


def test_an_archive_of_two_files_of_one_name_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("a/code/x.py", "good")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/code/x.py", "other")
    with pytest.raises(ValueError, match="two files of one name"):
        load_script(tmp_path / "net.pt", CPU)
