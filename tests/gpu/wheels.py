"""Packages that a GPU machine lacks, fetched as wheels on another machine and unpacked there.

They are for Python 3.12 on x86-64, together under 45 MB. The machine must have torch, einops, msgpack, ninja, numpy,
packaging, pillow, psutil, py-cpuinfo, pyarrow, pyyaml, safetensors, scipy, tensorboard, and tqdm.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

# pip matches a platform exactly, so every one is named that a wheel here may be for.
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
FETCHED = (
    *("av", "hjson", "omegaconf", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    "typing-extensions",
)
BUILT = "deepspeed"  # has no wheel to fetch; without its extensions it is pure Python
MOST_BYTES = 45_000_000


def fetch(folder: Path) -> None:
    """Put the wheels into a folder, in the versions that are installed here.

    Raises:
        ValueError: they are too large to travel together.
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip"]
    place = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    pinned = [f"{name}=={version(name)}" for name in FETCHED]
    subprocess.run([*pip, "download", "--quiet", *place, *platforms, "-d", str(folder), *pinned], check=True)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*pip, *build, f"{BUILT}=={version(BUILT)}"], check=True, env=os.environ | {"DS_BUILD_OPS": "0"})
    sizes = {file.name: file.stat().st_size for file in sorted(folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 1e6:6.1f} MB  {name}")
    if sum(sizes.values()) > MOST_BYTES:
        raise ValueError(f"{folder} holds {sum(sizes.values()) / 1e6:.1f} MB of wheels, more than 45; empty it first")


def unpack(wheels: Path, target: Path) -> None:
    """Unpack all wheels of a folder into one that can stand on PYTHONPATH.

    Raises:
        ValueError: there is no wheel.
    """
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise ValueError(f"--wheels-from {wheels} holds no .whl; make them with --wheels {wheels}")
    for file in files:
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)
