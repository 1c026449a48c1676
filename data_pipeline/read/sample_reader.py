"""Reads one clip, from its bytes in a shard to pixels and caption, and says which part of it is shown."""

from __future__ import annotations

from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.read.clip_decoder import DecodesViews, Uint8Array, View, ViewDecoder
from data_pipeline.read.config import DataConfig
from data_pipeline.read.order import PURPOSE_VIEW, below, draw
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.shard_files import ShardFiles
from data_pipeline.read.two_tries import TwoTries


class SampleReader:
    """Reads clips of one dataset. Each process needs an instance of its own.

    Args:
        files: the dataset's shards.
        decoder: of their clips; None for a `ViewDecoder`.
    """

    def __init__(self, files: ShardFiles, decoder: DecodesViews | None = None) -> None:
        self._samples = TwoTries(files)
        self._decoder = decoder or ViewDecoder(files.dataset.fps)

    def read(self, sample: Sample, view: View, out: Uint8Array) -> str:
        """Decode a view of a sample into `out` [3, T, S, S] and return its caption.

        Raises:
            UnreadableSample: neither the local bytes nor a fresh download could be read.
            StoreError: the storage fails, so nothing is known about the sample.
        """
        return self._samples.read(sample, lambda raw: self._decode(raw, sample, view, out))

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
