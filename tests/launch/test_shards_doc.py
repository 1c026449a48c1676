"""docs/shards*.md are a transcript: their commands are run as they are written, from the first to the last.

They run in a folder that looks like a fresh checkout with `videos` and the other inputs that the text names, against a
real S3 gateway; the lines that only a reader can complete (`...`) and the setup are left out.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from data_pipeline.build.config import ShardsConfig
from data_pipeline.dataset.description import read_dataset
from data_pipeline.store.local import LocalStore
from data_pipeline.store.open import open_store
from launch import build_shards, drop_duplicates, report_shards, take_down, verify_shards
from launch.command_line import config_parser, parse_overrides
from tests.data_pipeline.cut.videos import real_video
from tests.data_pipeline.store.gateway import Gateway
from trainer.config.loader import load_config

ROOT = Path(__file__).parents[2]
TEXT = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("shards", "shards_changing", "shards_running"))
SECRET = "testsecret12"


def commands() -> list[str]:
    """The lines of all bash blocks, in order, without what cannot be run as it stands."""
    blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and "..." not in line and not line.startswith(("make ", ". ", "#"))]


def test_every_setting_and_file_in_the_text_is_there() -> None:
    builds = [shlex.split(line) for line in commands() if "build_shards.py" in line and "--source" in line]
    assert len(builds) == 5
    for words in builds:
        parser = config_parser(ShardsConfig, "build_shards.py", "")
        for option in ("--source", "--output"):
            parser.add_argument(option)
        for flag in ("--append", "--retry-quarantined", "--from-plan"):
            parser.add_argument(flag, action="store_true")
        arguments = parse_overrides(parser, words[2:])
        load_config(ShardsConfig, arguments.config, [*arguments.overrides, "source=a", "output=b"])
    named = set(re.findall(r"(?<![\w/])(?:launch|configs)/[\w/.-]+\.(?:py|yaml)\b", TEXT))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    sections = {"clip", "caption", "columns", "split", "sources", "run"}
    keys = {key for key in re.findall(r"`((?:\w+\.)?\w+)=[^`]*`", TEXT)}
    own = {key for key in keys if key.partition(".")[0] in sections or key in ("near_duplicates", "duplicates")}
    assert {"run.unit_memory_bytes", "near_duplicates"} <= own
    settings = load_config(ShardsConfig, [], ["source=a", "output=b"])
    for key in own:
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name)  # AttributeError names the key that is not there


@pytest.fixture
def desk(tmp_path: Path, s3_gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The reader's folder, and an empty bucket `my-bucket`."""
    for name in ("launch", "configs", "data_pipeline", "trainer", "model"):
        (tmp_path / name).symlink_to(ROOT / name)
    videos = tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        shutil.copy(real_video(name), videos / "a")
        (videos / "a" / name).with_suffix(".txt").write_text(f"The video {name} & <nothing> else.")
    shutil.copy(real_video("carphone_pristine.mp4"), videos)  # smaller than base.yaml allows
    (videos / "carphone_pristine.txt").write_text("A man in a car.")
    (videos / "broken.mp4").write_bytes(b"no video")
    (videos / "broken.txt").write_text("Not to be seen.")
    shutil.copy(real_video("bikes.mp4"), tmp_path / "again.mp4")  # a near-duplicate in a further manifest
    (tmp_path / "more.csv").write_text("video,caption\nagain.mp4,Bicycles once more.\n")
    (tmp_path / "windows.csv").write_text("video,start,end,caption\na.mp4,0,2,c\nb.mp4,0,2,c\na.mp4,2,4,c\n")
    (tmp_path / "ids.txt").write_text("a/bigbuckbunny.mp4\n")
    film = tmp_path / "UCF-101" / "YoYo" / "v_YoYo_g25_c05.avi"
    sequences = tmp_path / "MCL-JCV"
    for path in (film, *(sequences / f"videoSRC{number:02d}_1920x1080_30.mp4" for number in range(1, 31))):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a video")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("101 YoYo\n")
    (lists / "trainlist01.txt").write_text("YoYo/v_YoYo_g25_c05.avi 101\n")
    (lists / "testlist01.txt").write_text("")
    for name, value in s3_gateway.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="my-bucket")
    yield tmp_path
    for item in client.list_objects_v2(Bucket="my-bucket").get("Contents", []):
        client.delete_object(Bucket="my-bucket", Key=item["Key"])
    client.delete_bucket(Bucket="my-bucket")


@pytest.mark.slow
@pytest.mark.s3
def test_every_command_does_as_the_text_says(desk: Path) -> None:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": "/tmp",
    }
    said = ""
    for line in commands():
        done = subprocess.run(
            ["bash", "-euc", line],
            cwd=desk,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        said += f"$ {line}\n{done.stdout}"
    local, remote = LocalStore(desk / "shards"), open_store("s3://my-bucket/shards")
    first = read_dataset(remote).ledger
    assert (first.input, first.committed) == (4, 2)
    assert first.rejected == {"too_small": 1}
    assert first.quarantined == {"undecodable": 1}
    assert "4 of 4 units committed (100.0 %) of 4 rows; complete" in said
    last = read_dataset(local).ledger
    assert last.input == last.accounted == 5
    assert last.rejected == {"too_small": 1, "taken_down": 1, "near_duplicate": 1}
    assert verify_shards.main(["--shards", str(local.root)]) == 0
    assert re.search(r" The video (bikes|bigbuckbunny)\.mp4 & <nothing> else\. \{", said)
    assert "&lt;nothing&gt;" in (desk / "report.html").read_text()
    for store in (local, remote):
        assert [key for key in store.keys() if SECRET.encode() in store.read(key)] == []
    assert SECRET not in said
    assert SECRET not in (desk / "report.html").read_text()


def test_the_scripts_that_are_run_are_those_of_this_tree() -> None:
    """The list above must not shrink unnoticed when the text is edited."""
    scripts = {word for line in commands() for word in shlex.split(line) if word.startswith("launch/")}
    modules = (build_shards, drop_duplicates, report_shards, take_down, verify_shards)
    expected = {f"launch/{module.__name__.rpartition('.')[2]}.py" for module in modules}
    assert scripts == expected | {"launch/make_manifest.py"}
