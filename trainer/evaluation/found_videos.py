"""The videos that `--source` of an evaluation names: one file, a folder's, or those of a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.source.folder import videos_of_folder
from data_pipeline.source.names import VIDEO_SUFFIXES
from data_pipeline.store.text import read_lines


@dataclass(frozen=True)
class FoundVideos:
    """Videos to measure, as (name, path), and what was found beside them.

    Attributes:
        items: name relative to the folder, and path.
        failed: names that cannot be used, and why.
        remark: of the files that are no videos, in words; "" without such files.
    """

    items: Sequence[tuple[str, Path]]
    failed: Sequence[tuple[str, str]] = ()
    remark: str = ""

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


def find_videos(root: str | Path, listing: str | Path | None = None, without: Sequence[Path] = ()) -> FoundVideos:
    """Videos below a folder, sorted by name, as a build finds them; or one file; or those a list file names.

    Args:
        root: folder or single video.
        listing: text file with one path relative to `root` a line. Where no file has the whole line as its path, what
            follows the first blank is ignored, so that UCF-101's `trainlist01.txt` (path and class number) and
            `testlist01.txt` work as they are.
        without: files and folders that the search passes over: the results of an earlier run of the same command.
    Raises:
        ValueError: the path holds no video or is a dataset of shards, or a listed file does not exist.
    """
    if "://" in str(root):
        raise ValueError(f"--source {root} must be a local file or folder; a dataset of shards is given as --shards")
    root = Path(root)
    if root.is_file():
        if listing is not None:
            raise ValueError(f"--list {listing} chooses among the videos of a folder, and --source {root} is a file")
        return FoundVideos([(root.name, root)])
    if not root.is_dir():
        why = "is neither a file nor a folder" if root.exists() else "does not exist"
        raise ValueError(f"--source {root} {why}; name a folder of videos, or one video")
    if (root / "dataset.json").is_file():
        raise ValueError(f"--source {root} is a dataset of shards; give it as --shards {root}")
    if listing is not None:
        names = [_listed(root, line.strip()) for line in read_lines(Path(listing)) if line.strip()]
        if not names:
            raise ValueError(f"{listing} names no video; write the path of a video below {root} on each line")
        missing = [name for name in names if not (root / name).is_file()]
        if missing:
            raise ValueError(
                f"{listing} names {missing[0]!r}, which is not below {root} ({len(missing)} missing in all)"
            )
        return FoundVideos([(name, root / name) for name in names])
    videos, unusable, left_out = videos_of_folder(root, without)
    if not left_out.videos:
        raise ValueError(f"--source {root} holds no video ({', '.join(sorted(VIDEO_SUFFIXES))})")
    return FoundVideos(
        [(name, root / name) for name in videos],
        [(str(root), why) for why in unusable],
        left_out.line(str(root)) if left_out.unknown or left_out.hidden or left_out.unreadable else "",
    )


def _listed(root: Path, line: str) -> str:
    """The path that a line of a list names."""
    return line if (root / line).is_file() else line.split()[0]
