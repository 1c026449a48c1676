"""TorchScript networks of a stranger write to no file of the operator, when they are loaded and when they run."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.torchscript import load_script
from trainer.evaluation.frechet import VideoFeatures
from trainer.evaluation.script_process import Limits, ScriptNetwork, _Server
from trainer.generation.networks import Classifier

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


class Endless(nn.Module):
    """It computes for ever, called or loaded."""

    def __init__(self, *, loaded: bool) -> None:
        super().__init__()
        self.loaded = loaded

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool, bool]:
        return torch.zeros(1), self.loaded, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool, bool]) -> None:
        self.loaded, self.training = state[1], state[2]
        while self.loaded and bool(state[0].sum() < 1):
            state[0].mul_(0)

    def forward(self, video: Tensor) -> Tensor:
        found = video.flatten(1)
        while bool(found.sum() < 1e30):
            found = found * 0
        return found


class Grows(nn.Module):
    """It takes memory without an end, in pieces of four megabytes, or in one text."""

    def __init__(self, *, text: bool) -> None:
        super().__init__()
        self.text = text

    def forward(self, video: Tensor) -> Tensor:
        held, word = [video], "word"
        while len(held) < 1000000000:
            if self.text:
                word = word + word
            else:
                held.append(torch.rand(1000000))  # numbers that no optimization takes out of the loop
        return held[0]


class Prints(nn.Module):
    """It writes to the console of whoever calls it, with a title for the window."""

    def forward(self, video: Tensor) -> Tensor:
        print("\x1b]0;title\x07")
        return video.flatten(1)


class Huge(nn.Module):
    """It gives a tensor that has more numbers than any machine, in one number."""

    def forward(self, video: Tensor) -> Tensor:
        return video.flatten(1)[:, :1].expand(len(video), 1099511627776)


class Pair(nn.Module):
    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        return video, video


ONE_CALL = Limits(call_s=2, clip_s=0)
ONE_OPENING = Limits(open_s=3)
CLIPS = torch.rand(2, 3, 4, 8, 8)


def saved(network: nn.Module, file: Path) -> Path:
    torch.jit.script(network).save(str(file))  # type: ignore[no-untyped-call]
    return file


@pytest.mark.slow
def test_a_network_that_computes_for_ever_is_ended_and_another_one_goes_on(tmp_path: Path) -> None:
    good = ScriptNetwork(saved(Computes(), tmp_path / "good.pt"), CPU, "--fvd good.pt")
    rows = torch.rand(3, 4)
    before = good(rows)
    endless = ScriptNetwork(saved(Endless(loaded=False), tmp_path / "endless.pt"), CPU, "--fvd endless.pt", ONE_CALL)
    with pytest.raises(
        ValueError, match=r"^--fvd endless\.pt gave no answer for 2 clips within 2 s, and was ended; name"
    ):
        endless(CLIPS)
    assert torch.equal(good(rows), before)
    file = saved(Endless(loaded=True), tmp_path / "loaded.pt")
    with pytest.raises(ValueError, match=r"^--fvd loaded\.pt could not be opened within 3 s, and was ended; name"):
        ScriptNetwork(file, CPU, "--fvd loaded.pt", ONE_OPENING)
    assert torch.equal(good(rows), before)


class StandIn:
    """In the place of a process for networks: it knows those that were opened since it was started last."""

    def __init__(self) -> None:
        self.starts, self.opened = 0, 0
        self.runs = False
        self._request: dict[str, Any] = {}

    def running(self) -> StandIn:
        if not self.runs:
            self.starts, self.opened, self.runs = self.starts + 1, 0, True
        return self

    def close(self, wait_s: float = 0.0) -> str:
        self.runs = False
        return "killed"

    def send(self, request: dict[str, Any], data: bytes) -> None:
        self._request = request

    def receive(self, limit_s: float) -> dict[str, Any]:
        if "file" in self._request:
            self.opened += 1
            return {"number": self.opened - 1, "arguments": [], "bytes": 0}
        known = self._request["call"] < self.opened
        return {"shape": [1, 1], "bytes": 4} if known else {"failed": "IndexError: list index out of range", "bytes": 0}

    def read(self, count: int, most: int) -> bytearray:
        return bytearray(count)


def test_a_network_is_opened_again_where_its_process_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, process = _Server(), StandIn()
    monkeypatch.setattr("trainer.evaluation.script_process._server", lambda process: server)
    monkeypatch.setattr(server, "_one", process)
    network = ScriptNetwork(tmp_path / "a.pt", CPU, "--fvd a.pt")
    for ended in (False, True):
        if ended:
            process.close()
        assert network(CLIPS[:1]).shape == (1, 1)
    assert (process.starts, process.opened) == (2, 1)


def test_a_network_that_takes_all_memory_gets_no_more_than_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine where a gigabyte is free."""
    server = _Server()
    monkeypatch.setattr("trainer.evaluation.script_process._server", lambda process: server)
    monkeypatch.setattr("trainer.evaluation.script_process._free_bytes", lambda: 10**9)
    for text in (False, True):
        network = VideoFeatures(saved(Grows(text=text), tmp_path / "grows.pt"), CPU)
        with pytest.raises(
            ValueError, match=r"^--fvd .*grows\.pt .*(allocate memory.*more memory|its process ended)"
        ) as told:
            network(CLIPS)
        assert "\n" not in str(told.value)


def test_features_whose_covariance_no_memory_holds_are_refused(tmp_path: Path) -> None:
    """98304 numbers, whose covariance takes 77 GB."""
    network = VideoFeatures(saved(Prints(), tmp_path / "wide.pt"), CPU)
    with pytest.raises(ValueError, match=r"gives 98304 numbers for a clip, .* more than 8192 is not computed; name"):
        network(torch.zeros(1, 3, 8, 64, 64))


def test_what_a_network_prints_goes_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert VideoFeatures(saved(Prints(), tmp_path / "prints.pt"), CPU)(CLIPS).shape == (2, 1, 768)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("network", "given"), [(Huge, r"\[2, 1099511627776\]"), (Pair, "tuple")])
def test_what_a_network_gives_is_not_taken_whatever_it_is(network: type[nn.Module], given: str, tmp_path: Path) -> None:
    file = saved(network(), tmp_path / "net.pt")
    with pytest.raises(ValueError, match=rf"^--fvd .* gives {given} for 2 clips, not \[B, d\]"):
        VideoFeatures(file, CPU)(CLIPS)
    with pytest.raises(ValueError, match=rf"^--classifier .* gives {given}, not \[2, 3\]"):
        Classifier(file, 3, CPU)(CLIPS)
