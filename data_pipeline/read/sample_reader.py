"""One sample from its bytes in a shard to pixels and caption, with one more try from the store when that fails."""

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
    """A sample that could not be read, twice."""

    row: int
    key: str
    shard: str
    error: str

    def __str__(self) -> str:
        return f"{self.key} (row {self.row}, {self.shard}): {self.error}"


class UnreadableSample(ValueError):
    """Raised for a sample that stayed unreadable; `.bad` says which and why."""

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
    """Reads samples of one dataset; one per process.

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
        self._bad: dict[int, BadSample] = {}  # rows known to be bad are not downloaded again every epoch

    def read(self, sample: Sample, view: View, out: Uint8Array) -> str:
        """Decode a view of a sample into `out` [3, T, S, S] and return its caption.

        Raises:
            UnreadableSample: neither the local bytes nor a fresh download could be read.
            StoreError: the storage fails, which is not the sample's fault.
        """
        if sample.row in self._bad:
            raise UnreadableSample(self._bad[sample.row])
        place = (sample.shard, sample.offset, sample.size)
        try:
            return self._decode(self.files.read(*place), sample, view, out)
        except (DigestMismatch, FileNotFoundError):
            damaged_copy = False
        except ClipError:
            damaged_copy = True  # or damaged in the store: the second try decides
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
    """Window, crop and mirroring of a training example: a function of seed, epoch and row, so of nothing that a
    rescale changes. `attempt` > 0 is the example as a stand-in, which then differs from its own appearance. `frames` is
    the length of the window where it is not data.frames."""
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
    """The square in the middle, never mirrored, from a given frame."""
    side = crop_side(config, sample)
    top, left = (sample.height - side) // 4 * 2, (sample.width - side) // 4 * 2
    return View(start, config.frame_stride, top, left, side, flip=False)


def crop_side(config: DataConfig, sample: Sample) -> int:
    """Side in stored pixels of the square that becomes image_size x image_size; even."""
    if not config.resize:
        return config.image_size
    short = min(sample.height, sample.width)
    return max(2, min(round(config.image_size * short / config.resize / 2) * 2, short // 2 * 2))
