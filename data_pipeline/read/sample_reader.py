"""Reads one sample, from its bytes in a shard to pixels and caption; a second try reads from the store itself."""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.read.clip_decoder import Uint8Array, View, ViewDecoder
from data_pipeline.read.config import DataConfig
from data_pipeline.read.order import PURPOSE_VIEW, below, draw
from data_pipeline.read.sample_table import Sample, SampleTable
from data_pipeline.read.shard_cache import DigestMismatch
from data_pipeline.read.shard_files import ShardFiles


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be read in two tries."""

    row: int
    key: str
    shard: str
    error: str

    def __str__(self) -> str:
        return f"{self.key} (row {self.row}, {self.shard}): {self.error}"


class UnreadableSample(ValueError):
    """A sample was unreadable in both tries; `bad` says which sample, and why."""

    def __init__(self, bad: BadSample) -> None:
        super().__init__(str(bad))
        self.bad = bad


class TooManyBadSamples(RuntimeError):
    """More distinct samples were unreadable than data.max_bad_samples allows; the message lists them."""

    @classmethod
    def listing(cls, config: DataConfig, bad: list[BadSample]) -> TooManyBadSamples:
        """The error for these samples. It is not the constructor, because pickle makes an error from its message."""
        lines = "\n".join(f"  {item}" for item in bad)
        return cls(
            f"data.max_bad_samples={config.max_bad_samples}: {len(bad)} samples of {config.shards} cannot be read:\n"
            f"{lines}\n"
            "run launch/verify_shards.py on the dataset and rebuild what it names, or raise data.max_bad_samples"
        )


class SampleReader:
    """Reads samples of one dataset. Each process needs an instance of its own.

    Args:
        config: the shape of an example.
        files: the dataset's shards.
        table: its index.
    """

    def __init__(self, config: DataConfig, files: ShardFiles, table: SampleTable) -> None:
        self.config = config
        self.files = files
        self.table = table
        self._decoder = ViewDecoder(files.dataset.fps)
        self._bad: dict[int, BadSample] = {}  # so that no epoch downloads them again

    def read(self, sample: Sample, view: View, out: Uint8Array) -> str:
        """Decode a view of a sample into `out` [3, T, S, S] and return its caption.

        Raises:
            UnreadableSample: neither the local bytes nor a fresh download could be read.
            StoreError: the storage fails, so nothing is known about the sample.
        """
        if sample.row in self._bad:
            raise UnreadableSample(self._bad[sample.row])
        place = (sample.shard, sample.offset, sample.size)
        try:
            return self._decode(self.files.read(*place), sample, view, out)
        except (DigestMismatch, FileNotFoundError):
            damaged_copy = False
        except ClipError:
            damaged_copy = True  # or the object in the store is damaged, which the second try shows
        try:
            caption = self._decode(self.files.read_afresh(*place), sample, view, out)
        except (ClipError, FileNotFoundError) as error:
            shard = self.files.dataset.shards[sample.shard].name
            bad = self._bad[sample.row] = BadSample(sample.row, sample.key, shard, f"{type(error).__name__}: {error}")
            raise UnreadableSample(bad) from error
        if damaged_copy:
            self.files.discard(sample.shard)
        return caption

    def _decode(self, raw: bytes, sample: Sample, view: View, out: Uint8Array) -> str:
        members = parse_members(raw, sample.key)
        video, caption = members.get("mp4"), members.get("txt")
        if video is None or caption is None or len(video) != sample.video_size:
            raise ClipError(f"has the members {sorted(members)}, not the mp4 of {sample.video_size} bytes and the txt")
        self._decoder.decode(video, view, out)
        try:
            return caption.decode()
        except UnicodeDecodeError as error:
            raise ClipError("has a caption that is not UTF-8") from error


def random_view(config: DataConfig, sample: Sample, epoch: int, attempt: int = 0, *, frames: int | None = None) -> View:
    """Window, crop and mirroring of a training example.

    They follow from seed, epoch and row alone, so they do not change with the number of ranks or workers.

    Args:
        attempt: above 0 when the sample takes the place of an unreadable one; its view then differs from the view at
            its own place.
        frames: length of the window; None for data.frames.
    """
    words = draw(config.seed, PURPOSE_VIEW, (epoch, sample.row, attempt), 4)
    side = crop_side(config, sample)
    return View(
        start=below(words[0], sample.frames - config.span_of(frames or config.frames) + 1),
        stride=config.frame_stride,
        top=2 * below(words[1], (sample.height - side) // 2 + 1),
        left=2 * below(words[2], (sample.width - side) // 2 + 1),
        side=side,
        flip=config.hflip and bool(words[3] >> 63),
    )


def centre_view(config: DataConfig, sample: Sample, start: int) -> View:
    """The square in the middle, from a given frame on and never mirrored."""
    top, left, side = centred_square(config.image_size, config.resize, sample.height, sample.width)
    return View(start, config.frame_stride, top, left, side, flip=False)


def crop_side(config: DataConfig, sample: Sample) -> int:
    """Side in stored pixels of the square that is scaled to image_size x image_size; even."""
    return centred_square(config.image_size, config.resize, sample.height, sample.width)[2]


def centred_square(image_size: int, resize: int, height: int, width: int) -> tuple[int, int, int]:
    """Top, left and side, in stored pixels and even, of the square in the middle of height x width pixels.

    Args:
        image_size: side to which the square will be scaled.
        resize: what the short side would be scaled to with the same factor; 0: nothing is scaled.
    """
    side, short = image_size, min(height, width)
    if resize:
        side = max(2, min(round(image_size * short / resize / 2) * 2, short // 2 * 2))
    return (height - side) // 4 * 2, (width - side) // 4 * 2, side
