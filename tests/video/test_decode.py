"""Decoding by PyAV: the frames asked for, the window asked for, the right colors."""

from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.core.recipes import Clip
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.video.container import BadVideo
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe
from tests.conftest import frame_numbers, numbered_video

CODECS = [("libvpx-vp9", "webm"), ("libvpx", "webm"), ("libx264", "mp4"), ("mpeg4", "avi"), ("mjpeg", "avi")]


def request(path: Path, frames: list[int], crop: CropBox | None = None) -> ClipRequest:
    info = probe(path)
    return ClipRequest(
        id=path.name,
        path=path,
        frames=np.array([frames], np.int32),
        crops=(crop or CropBox(0, 0, info.width, info.height),),
        frame_size=(info.width, info.height),
        video_frames=max(info.frames, 1 + max(frames)),
    )


def clip_of(path: Path, wanted: ClipRequest, *, size: int) -> np.ndarray:
    """The only clip of a request: uint8 (T, size, size, 3)."""
    (clip,) = decode_clips(path, wanted, size=size)
    return clip


@pytest.mark.parametrize("gop", [1, 4, 100])
@pytest.mark.parametrize(("codec", "suffix"), CODECS)
@pytest.mark.parametrize("frames", [[0], [29], [3, 11, 12, 28], [0, 0, 7, 7, 7, 29], list(range(30))])
def test_exactly_the_frames_asked_for(tmp_path: Path, codec: str, suffix: str, gop: int, frames: list[int]) -> None:
    path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=30, gop=gop)
    assert frame_numbers(clip_of(path, request(path, frames), size=16)) == frames


@pytest.mark.parametrize(
    ("codec", "suffix", "size"),
    [(codec, suffix, (66, 50)) for codec, suffix in CODECS]
    # Of these, H.264 and MJPEG have no odd sizes at half color resolution.
    + [(codec, suffix, (65, 49)) for codec, suffix in CODECS if codec not in ("libx264", "mjpeg")],
)
def test_the_window_asked_for(tmp_path: Path, codec: str, suffix: str, size: tuple[int, int]) -> None:
    """Four quarters of four greys: each window sees its own."""
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    greys = {(0, 0): 50, (0, 1): 100, (1, 0): 150, (1, 1): 200}
    for (row, column), gray in greys.items():
        picture[24 * row :, 32 * column :] = gray
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    for (row, column), gray in greys.items():
        crop = CropBox(32 * column + 8, 24 * row + 6, 16, 12)
        clip = clip_of(path, request(path, [1], crop), size=16)
        assert abs(clip.astype(float).mean() - gray) < 3


def test_colours_are_right_on_a_real_clip(real_videos: Path) -> None:
    """Against BT.601's formula, at half size, where each pixel of color becomes one of the picture."""
    path = real_videos / "ssv2_166766.webm"
    with av.open(str(path)) as container:
        planes = next(iter(container.decode(video=0))).to_ndarray(format="yuv444p").astype(float)
    luma, blue, red = (halved(plane[:, 100:340]) for plane in planes)
    luma, blue, red = (luma - 16) * 255 / 219, (blue - 128) * 255 / 224, (red - 128) * 255 / 224
    expected = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], axis=-1)
    clip = clip_of(path, request(path, [0], CropBox(100, 0, 240, 240)), size=120)
    error = clip[0] - expected.clip(0, 255)
    assert abs(error).mean() < 1 and abs(error.mean((0, 1))).max() < 0.5


def halved(plane: np.ndarray) -> np.ndarray:
    """Half as high and wide, by the triangle filter of linear interpolation: weights 1 3 3 1."""
    for axis in (0, 1):
        padded = np.pad(plane, [(1, 1) if axis == a else (0, 0) for a in (0, 1)], mode="edge")
        parts = [np.take(padded, range(k, k + plane.shape[axis], 2), axis) for k in range(4)]
        plane = (parts[0] + 3 * parts[1] + 3 * parts[2] + parts[3]) / 8
    return plane


def test_a_change_of_size_in_mid_stream_moves_the_window_with_it(tmp_path: Path) -> None:
    """VP9 may change its frame size at a key frame: two files' packets in one stream."""
    paths = [
        numbered_video(tmp_path / f"{w}.webm", "libvpx-vp9", frames=4, width=w, height=h)
        for w, h in ((64, 48), (128, 96))
    ]
    both = tmp_path / "both.webm"
    with av.open(str(both), "w") as output:
        stream = output.add_stream("libvpx-vp9", rate=12)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
        count = 0
        for path in paths:
            with av.open(str(path)) as container:
                for packet in container.demux(video=0):
                    if packet.size:
                        copy = av.Packet(bytes(packet))
                        copy.stream, copy.time_base, copy.is_keyframe = stream, stream.time_base, packet.is_keyframe
                        copy.pts = copy.dts = round(count / 12 / stream.time_base)
                        output.mux(copy)
                        count += 1
    clip = clip_of(both, request(both, [0, 3, 4, 7], CropBox(16, 12, 32, 24)), size=16)
    assert frame_numbers(clip) == [0, 3, 0, 3]


@pytest.mark.parametrize(("codec", "suffix"), CODECS)
def test_a_frame_that_is_not_there_is_truncation(tmp_path: Path, codec: str, suffix: str) -> None:
    path = numbered_video(tmp_path / f"a.{suffix}", codec, frames=10)
    with pytest.raises(BadVideo, match="truncated"):
        clip_of(path, request(path, [0, 5, 40]), size=16)


def test_a_plain_request_of_a_real_clip(real_videos: Path) -> None:
    for path in real_videos.iterdir():
        if path.suffix != ".md":
            wanted = evaluation_request("x", path, probe(path), clip=Clip())
            clip = clip_of(path, wanted, size=64)
            assert clip.shape == (16, 64, 64, 3) and clip.std() > 10
