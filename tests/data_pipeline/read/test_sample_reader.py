"""Members of a sample against tarfile, and views: where they may lie and what they depend on."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dataset.tar import ClipError, parse_members
from data_pipeline.read.loader import ClipLoader
from data_pipeline.read.sample_reader import centre_view, crop_side, random_view
from data_pipeline.read.sample_table import Sample
from data_pipeline.read.two_tries import UnreadableSample
from tests.data_pipeline.dataset.tiny_dataset import write_dataset
from tests.data_pipeline.read.loading import CLIPS, config

SAMPLE = Sample(
    row=5,
    key="k",
    shard=0,
    offset=0,
    size=0,
    video_offset=0,
    video_size=0,
    frames=12,
    height=256,
    width=454,
    label="",
)


def make_tar(members: dict[str, bytes], **changes: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data))
        return buffer.getvalue()[: tar.offset]


@pytest.mark.parametrize("key", ["a", "dir/clip-0001", "x" * 80 + "/" + "y" * 90, "käse"])
def test_members_are_what_tarfile_wrote(key: str) -> None:
    written = {"json": b"{}", "mp4": np.random.default_rng(0).bytes(1500), "txt": "é".encode(), "empty": b""}
    raw = make_tar({f"{key}.{extension}": data for extension, data in written.items()})
    assert parse_members(raw, key) == written


def test_what_is_not_the_sample_is_refused() -> None:
    raw = make_tar({"a.mp4": b"1" * 600, "a.txt": b"2"})
    for wrong, message in (
        (raw[:-600], "member 'a.txt'|ends inside|of 1 bytes"),
        (raw[:-512], "has the member 'a.txt' of 1 bytes"),
        (raw[: 512 + 600 + 424 + 100], "ends inside a tar header"),
        (bytes([raw[0] ^ 1]) + raw[1:], "damaged tar header at byte 0"),
        (raw[:124] + b"zzzzzzzzzzz\0" + raw[136:], "damaged tar header"),
        (raw[:1024] + raw, "damaged tar header at byte"),
        (bytes(1024), "damaged tar header"),
        (make_tar({"a.mp4": b"", "b.txt": b""}), "has the member 'b.txt'"),
        (make_tar({"a.mp4": b""}, type=tarfile.DIRTYPE), "damaged tar header"),
    ):
        with pytest.raises(ClipError, match=message):
            parse_members(wrong, "a")


def test_a_sample_that_is_not_as_the_index_says_is_not_shown(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, [CLIPS[:3]])
    loader = ClipLoader(config(root, lanes=1, global_batch=1))
    sample, out = loader.table[1], np.empty((3, 4, 32, 32), np.uint8)
    view = centre_view(loader.config, sample, 0)
    assert loader.reader.read(sample, view, out) == CLIPS[1].caption
    with pytest.raises(UnreadableSample, match=rf"\['json', 'mp4', 'txt'\], not the mp4 of {sample.video_size + 1} by"):
        loader.reader.read(replace(sample, row=7, video_size=sample.video_size + 1), view, out)
    files = {f"{sample.key}.mp4": CLIPS[1].video, f"{sample.key}.txt": "é".encode("latin-1")}
    for members, message in ((files, "caption that is not UTF-8"), (dict([*files.items()][:1]), r"members \['mp4'\]")):
        with pytest.raises(ClipError, match=message):
            loader.reader._decode(make_tar(members), sample, view, out)


def test_views_reach_every_place_and_nothing_outside() -> None:
    settings = config(Path("x"), frames=4, frame_stride=3, image_size=224, hflip=True)
    views = [random_view(settings, replace(SAMPLE, row=row), epoch=1) for row in range(4000)]
    assert {v.start for v in views} == {0, 1, 2}  # 12 frames, a span of 10
    assert {v.top for v in views} == set(range(0, 33, 2))
    assert {v.left for v in views} == set(range(0, 231, 2))
    for flip in (True, False):  # each coordinate has a random word of its own
        own = [v for v in views if v.flip is flip]
        assert {v.start for v in own} == {0, 1, 2}
        assert {v.top for v in own} == set(range(0, 33, 2))
        assert {v.left for v in own if v.top < 16} == {v.left for v in own if v.top > 16} == set(range(0, 231, 2))
    assert 0.45 < sum(v.flip for v in views) / len(views) < 0.55
    assert not any(random_view(replace_flip(settings), replace(SAMPLE, row=r), 1).flip for r in range(100))


def replace_flip(settings: object) -> object:
    return replace(settings, hflip=False)  # type: ignore[type-var]


def test_a_view_depends_on_seed_epoch_row_and_attempt_and_on_nothing_else() -> None:
    settings = config(Path("x"), frames=4, image_size=224)
    view = random_view(settings, SAMPLE, 3)
    same = replace(settings, global_batch=96, lanes=8, workers=7, shuffle_window=50, cache_dir="y")
    assert random_view(same, replace(SAMPLE, shard=9, offset=99, key="z"), 3) == view
    others = [
        random_view(replace(settings, seed=12), SAMPLE, 3),
        random_view(settings, SAMPLE, 4),
        random_view(settings, replace(SAMPLE, row=6), 3),
        random_view(settings, SAMPLE, 3, attempt=1),
    ]
    assert len({(v.start, v.top, v.left) for v in [view, *others]}) == 5


def test_a_clip_of_exactly_the_span_and_side_has_one_view() -> None:
    settings = config(Path("x"), frames=12, image_size=256)
    view = random_view(settings, replace(SAMPLE, width=256), 0)
    assert (view.start, view.top, view.left, view.side) == (0, 0, 0, 256)


def test_a_square_is_even_and_inside_an_odd_frame() -> None:
    assert crop_side(config(Path("x"), image_size=256, resize=256), replace(SAMPLE, height=255)) == 254
    assert crop_side(config(Path("x"), image_size=2, resize=500), SAMPLE) == 2


@pytest.mark.parametrize(("image", "resize", "side"), [(224, 0, 224), (64, 64, 256), (112, 128, 224), (512, 512, 256)])
def test_the_square_has_the_share_that_resize_asks_for(image: int, resize: int, side: int) -> None:
    assert crop_side(config(Path("x"), image_size=image, resize=resize), SAMPLE) == side


def test_the_centre_view_is_centred_to_the_even_pixel() -> None:
    view = centre_view(config(Path("x"), image_size=224), SAMPLE, start=7)
    assert (view.start, view.top, view.left, view.flip) == (7, 16, 114, False)
