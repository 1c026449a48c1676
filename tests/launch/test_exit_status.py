"""The table of exit statuses in docs/commands.md against what the scripts return, and one line for each refusal."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from data_pipeline.store.base import StoreError
from launch.exit_status import ends_with_status, status_of
from tests.launch.scripts import COMMANDS, ROOT, run
from tests.tools.ports import free_port

TEXT = (ROOT / "docs" / "commands.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def stated() -> dict[str, set[str]]:
    """Script -> its statuses, as the table has them."""
    rows = [line.strip("|").split("|") for line in TEXT.split("## Exit statuses")[1].splitlines() if line[:3] != "| -"]
    found: dict[str, set[str]] = {script: set() for script in COMMANDS}
    for cells in rows:
        if len(cells) < 4 or cells[0].strip() == "status":
            continue
        who = cells[1]
        for script in COMMANDS:
            named = script.removeprefix("launch/") in who
            if named if "all" not in who else not (named and "but" in who):
                found[script] |= {status.strip("` ") for status in cells[0].split(",")}
    return found


def test_the_table_is_read_as_it_is_meant() -> None:
    found = stated()
    for script in ("launch/train.py", "launch/train_diffusion.py"):
        assert found[script] == {"0", "1", "2", "70", "preempted_status"}
    assert found["launch/evaluate.py"] == {"0", "1", "2", "129", "130", "141", "143"}


# What each script needs, and a value in it that cannot be.
WRONG = {
    "launch/build_shards.py": ["--source", "{tmp}/none.csv", "--output", "{tmp}/out"],
    "launch/encode_latents.py": ["--model", "{tmp}/none", "--shards", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/encode_text.py": ["--encoder", "{tmp}/none", "--latents", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/convert_official.py": ["--checkpoint", "{tmp}/none", "--config", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/decode_latents.py": ["--model", "{tmp}/none", "--latents", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/drop_duplicates.py": ["--shards", "{tmp}", "--distance", "8"],
    "launch/estimate.py": ["clip.fps=3"],
    "launch/evaluate.py": ["--model", "{tmp}", "--shards", "{tmp}", "--batch", "0"],
    "launch/evaluate_generation.py": [
        *("--samples", "{tmp}/none", "--shards", "{tmp}", "--latents", "{tmp}", "--decoder", "{tmp}"),
        *("--output", "{tmp}/out"),
    ],
    "launch/export.py": ["--checkpoint", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/make_manifest.py": ["mcl-jcv", "--source", "{tmp}", "--output", "{tmp}/list.txt"],
    "launch/reconstruct.py": ["--model", "{tmp}/none", "--source", "{tmp}/a.mp4", "--output", "{tmp}/b.webm"],
    "launch/reenact.py": ["--model", "{tmp}", "--structure", "a", "--dynamics", "b", "--output", "{tmp}/o.mp4", "-x"],
    "launch/report_shards.py": ["--shards", "{tmp}/none", "--output", "{tmp}/page.html"],
    "launch/sample.py": ["--model", "{tmp}/none", "--output", "{tmp}/out"],
    "launch/take_down.py": ["--shards", "{tmp}", "--ids", "{tmp}/none.txt"],
    "launch/train.py": ["--config", "{tmp}/none.yaml"],
    "launch/train_diffusion.py": ["output={tmp}/out", "data.shards={tmp}/none"],
    "launch/verify_shards.py": ["--shards", "{tmp}/none"],
    "launch.demo": ["--source", "{tmp}/none", "--output", "{tmp}/out"],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_help_ends_with_0_and_a_wrong_command_with_2_in_one_line(script: str, tmp_path: Path) -> None:
    assert {"0", "1", "2"} <= stated()[script]
    shown = run(script, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    for words in (["--no-such-option"], [word.format(tmp=tmp_path) for word in WRONG[script]]):
        done = run(script, *words)
        assert done.returncode == 2, (words, done.stderr)
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"{script}"), line
        assert len(line) > len(script) + 10
    assert list(tmp_path.iterdir()) == []


def test_the_demo_reads_the_words_for_its_training_before_it_builds_anything(tmp_path: Path) -> None:
    done = run("launch.demo", "--output", str(tmp_path / "demo"), "stepz=3")
    assert done.returncode == 2
    assert done.stderr == "launch.demo: unknown key 'stepz'; did you mean 'steps'?\n"
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["launch/verify_shards.py", "--shards", "s3://bucket/x"],
        ["launch/report_shards.py", "--shards", "s3://bucket/x", "--output", "{tmp}/page.html"],
        ["launch/drop_duplicates.py", "--shards", "s3://bucket/x"],
        ["launch/take_down.py", "--shards", "s3://bucket/x", "--ids", "{tmp}/ids"],
        ["launch/build_shards.py", "--output", "s3://bucket/x", "--status"],
        ["launch/build_shards.py", "--output", "s3://bucket/x", "--source", "{tmp}/m.csv"],
        ["launch/encode_latents.py", "--output", "s3://bucket/x", "--status"],
        ["launch/export.py", "--checkpoint", "s3://bucket/x", "--output", "{tmp}/model"],
    ],
    ids=lambda words: "-".join(words[:2]),
)
def test_a_store_that_does_not_answer_ends_with_1_in_one_line(
    words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ids").write_text("a\n")
    (tmp_path / "m.csv").write_text("video,caption\na.mp4,x\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr("data_pipeline.store.s3.pause", lambda failures: None)
    module = __import__(words[0].replace("/", ".").removesuffix(".py"), fromlist=["main"])
    assert module.main([word.format(tmp=tmp_path) for word in words[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    option = "--checkpoint " if "--checkpoint" in words else ""
    assert line.startswith(f"{words[0]}: {option}s3://bucket/x")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), 2),
        (FileNotFoundError(2, "No such file", "a"), 2),
        (PermissionError("no credentials"), 2),
        (IsADirectoryError(21, "Is a directory", "a"), 2),
        (OSError(28, "No space left on device", "a"), 1),
        (OSError(5, "Input/output error"), 1),
        (StoreError("s3://b/k: 503"), 1),
        (TimeoutError("slow"), 1),
        (ConnectionRefusedError(111, "refused"), 1),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "x"), 2),
    ],
)
def test_which_errors_may_pass(error: ValueError | OSError, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(error) == status

    @ends_with_status
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    assert main([]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_message_of_several_lines_becomes_one_and_names_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    @ends_with_status
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    error: Exception = ValueError("one\n  two\n")
    main([])
    assert capsys.readouterr().err.endswith(": one two\n")
    error = FileNotFoundError(2, "No such file or directory", "a b.txt")
    main([])
    assert capsys.readouterr().err.endswith(": a b.txt: No such file or directory\n")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_a_script_clean_up_and_is_its_status(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "some.py"
    script.write_text(
        "import sys, time\n"
        "from launch.exit_status import ends_with_status\n"
        "@ends_with_status\n"
        "def main(argv=None):\n"
        "    try:\n"
        "        print('begun', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaned', flush=True)\n"
        "sys.exit(main())\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (128 + number, "cleaned\n")
    assert "Traceback" not in err
    assert str(process.returncode) in stated()["launch/reconstruct.py"]


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """SIGTERM as a new process has it: a test before may have left Ray's handler."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_arrives_while_a_class_is_made_is_its_status(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python 3.11 wraps what `__set_name__` raises in a RuntimeError."""

    class Signalled:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(number)

    @ends_with_status
    def main(argv: Sequence[str] | None = None) -> int:
        type("Made", (), {"field": Signalled()})
        return 0

    assert main([]) == 128 + number
    assert "Error calling" not in capsys.readouterr().err


@ends_with_status
def failing(argv: Sequence[str] | None = None) -> int:
    """A script with an error of its own."""
    raise RuntimeError("wrong")


def test_other_errors_of_a_running_program_are_raised() -> None:
    with pytest.raises(RuntimeError, match="wrong"):
        failing([])


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["launch/train.py", "--help"], ["launch/make_manifest.py", "mcl-jcv", "--partial"]])
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, words: list[str], unbuffered: str) -> None:
    """Help is long; of a manifest one line is printed at the end."""
    script, *options = words
    if "--help" not in options:
        (tmp_path / "videoSRC01_1920x1080_30.y4m").write_bytes(b"")
        options += ["--source", str(tmp_path), "--output", str(tmp_path / "manifest.csv")]
    process = subprocess.Popen(
        [sys.executable, *COMMANDS[script], *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(30) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("script", ["launch/train.py", "launch/build_shards.py", "launch/evaluate.py"])
def test_help_that_cannot_be_printed_is_one_line(script: str) -> None:
    """A full disk below standard output."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, script, "--help"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 1
    assert done.stderr == f"{script}: the help could not be printed: [Errno 28] No space left on device\n"


def options_of(script: str) -> set[str]:
    collections = (("ucf101",), ("mcl-jcv",), ("sort",))
    kinds: tuple[tuple[str, ...], ...] = collections if script == "launch/make_manifest.py" else ((),)
    shown = "".join(run(script, *kind, "--help").stdout for kind in kinds)
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", shown))


def documented() -> dict[str, list[str]]:
    """Script -> the command lines that README and docs give for it."""
    found: dict[str, list[str]] = {}
    for file in DOCUMENTS:
        for line in file.read_text().replace("\\\n", " ").splitlines():
            for script in re.findall(r"(?<![\w/])launch/[a-z_]+\.py(?= )", line):
                command = re.split(r"`|\s#\s", line.split(script, 1)[1])[0]
                found.setdefault(script, []).append(command)
    return found


def test_every_option_in_the_documents_is_one_of_the_script() -> None:
    lines = documented()
    assert set(COMMANDS) - set(lines) <= {"launch.demo"}
    for script, commands in lines.items():
        known = options_of(script)
        for command in commands:
            given = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command.split(" -- ")[0]))
            assert given <= known, f"{script} {command}"
