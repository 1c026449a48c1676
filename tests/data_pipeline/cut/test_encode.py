import io
import json
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from data_pipeline.cut.config import ClipConfig, Codec
from data_pipeline.cut.encode import encode_pictures, encoder_version, luma, squared_errors
from tests.data_pipeline.cut.videos import decoded, picture, psnr


def stored_pictures(count: int = 24, size: int = 128) -> list[av.VideoFrame]:
    frames = [av.VideoFrame.from_ndarray(picture(n, size, size), format="rgb24") for n in range(count)]
    return [frame.reformat(format="yuv420p", dst_color_range="MPEG") for frame in frames]


@pytest.mark.parametrize("codec", list(Codec))
def test_same_pictures_give_the_same_bytes_in_another_process(codec: Codec, tmp_path: Path) -> None:
    program = (
        "import sys; from tests.data_pipeline.cut.test_encode import *\n"
        f"sys.stdout.buffer.write(encode_pictures(stored_pictures(), ClipConfig(codec=Codec.{codec.name})).data)"
    )
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout
    assert encode_pictures(stored_pictures(), ClipConfig(codec=codec)).data == other


@pytest.mark.parametrize("settings", [{}, {"bframes": 3}, {"gop": 1}, {"codec": Codec.mjpeg}])
def test_psnr_is_what_decoding_the_bytes_gives(settings: dict[str, object]) -> None:
    pictures = stored_pictures()
    encoded = encode_pictures(pictures, ClipConfig(**settings))  # type: ignore[arg-type]
    with av.open(io.BytesIO(encoded.data)) as container:
        frames = [f.reformat(format="yuv420p", dst_color_range="MPEG") for f in container.decode(video=0)]
    per_frame = [psnr(luma(a), luma(b)) for a, b in zip(pictures, frames, strict=True)]
    overall = psnr(np.stack([luma(p) for p in pictures]), np.stack([luma(f) for f in frames]))
    assert encoded.psnr == pytest.approx(overall, abs=1e-6)
    assert encoded.worst_psnr == pytest.approx(min(per_frame), abs=1e-6)
    assert squared_errors(encoded.data, pictures)[0] == pytest.approx(
        float(np.sum((luma(pictures[0]).astype(float) - luma(frames[0])) ** 2))
    )


def test_frames_are_stamped_k_eighths_and_nothing_else_is_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_pictures(stored_pictures(), ClipConfig()).data)
    command = ["ffprobe", "-v", "error", "-show_frames", "-show_streams", "-show_format", "-of", "json", str(path)]
    probed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert [float(frame["pts_time"]) for frame in probed["frames"]] == [k / 8 for k in range(24)]
    assert [k for k, frame in enumerate(probed["frames"]) if frame["key_frame"]] == [0, 16]
    (stream,) = probed["streams"]
    assert (stream["codec_name"], stream["pix_fmt"], stream["r_frame_rate"]) == ("h264", "yuv420p", "8/1")
    assert not {"creation_time", "encoder"} & set(probed["format"].get("tags", {}))


def test_colours_come_back_as_they_went_in() -> None:
    images = [picture(n, 128, 128) for n in range(4)]
    encoded = encode_pictures(stored_pictures(4), ClipConfig(crf=4))
    assert psnr(np.stack(decoded(encoded.data)), np.stack(images)) > 34  # what half-size colour planes leave


def test_version_names_every_library_that_decides_bytes() -> None:
    assert {part.split("-")[0] for part in encoder_version().split("/")[2].split("+")} == {
        "avcodec",
        "avformat",
        "avfilter",
        "swscale",
    }
