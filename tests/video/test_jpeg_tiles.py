"""Parts of JPEG pictures show the same pixels as whole pictures do."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.repack.encode import Task, repack_clip
from ssv2rt.repack.settings import settings_for
from ssv2rt.repack.tiled_jpeg import TiledJpeg, blocks_of_tile
from ssv2rt.video import seek
from ssv2rt.video.crops import CropBox
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.jpeg_tiles import Tiles, tiles_of
from ssv2rt.video.probe import probe
from ssv2rt.video.seek import all_frames
from tests.video.corpus import KINDS, encode


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    """uint8 (height, width, 3): blobs of color, so that each tile is another."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
    return small.repeat(4, 0).repeat(4, 1)[:height, :width]


def tiled(width: int, height: int, seed: int = 0) -> bytes:
    coder = TiledJpeg(width, height, quality=4, aspect=Fraction(1), color=(6, 2), tick=Fraction(1, 1000))
    frame = av.VideoFrame.from_ndarray(noise(width, height, seed), "rgb24").reformat(format="yuvj420p")
    frame.pts, frame.time_base = 0, Fraction(1, 1000)
    (packet,) = [*coder.encode(frame), *coder.encode(None)]
    return bytes(packet)


def by_pillow(**options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(noise(160, 96)).save(content, "JPEG", **options)
    return content.getvalue()


def planes(picture: bytes) -> list[np.ndarray]:
    """What FFmpeg decodes: Y, U and V."""
    context = av.CodecContext.create("mjpeg", "r")
    (frame,) = context.decode(av.Packet(picture))
    assert isinstance(frame, av.VideoFrame) and not frame.is_corrupt
    return [
        np.asarray(memoryview(plane)).reshape(-1, plane.line_size)[: plane.height, : plane.width].copy()
        for plane in frame.planes
    ]


def assert_stack_is_right(pictures: list[bytes], tiles: Tiles, crop: CropBox) -> None:
    """The crops have the same samples of luma and chroma, and nothing that they do not touch is there."""
    stack = tiles.stack(pictures, crop)
    assert stack is not None
    shown = planes(stack.content)
    for number, picture in enumerate(pictures):
        for whole, part in zip(planes(picture), shown, strict=True):
            x, y = round(tiles.width / whole.shape[1]), round(tiles.height / whole.shape[0])
            top, left = crop.top // y, crop.left // x
            bottom, right = -(-(crop.top + crop.height) // y), -(-(crop.left + crop.width) // x)
            dy, dx = (stack.top - number * stack.height) // y, stack.left // x
            assert np.array_equal(whole[top:bottom, left:right], part[top - dy : bottom - dy, left - dx : right - dx])
            assert part.shape[1] * x < crop.width + 2 * tiles.wide + x
    assert stack.height < crop.height + 2 * tiles.high


@settings(max_examples=60)
@given(st.data(), st.integers(2, 330), st.integers(2, 120))
def test_any_crop_of_any_size(data: st.DataObject, width: int, height: int) -> None:
    pictures = [tiled(width, height, seed) for seed in range(3)]
    picture = pictures[0]
    with Image.open(io.BytesIO(picture)) as shown:
        assert shown.size == (width, height)
        shown.draft("YCbCr", shown.size)
        luma = np.asarray(shown, int)[..., 0]
    assert np.abs(planes(picture)[0] - luma).max() <= 4, "another decoder, which looks at the numbers of markers"
    grey = noise(width, height) @ [0.299, 0.587, 0.114]
    assert np.abs(grey - luma).mean() < 8, "the picture itself"
    tiles = tiles_of(picture)
    if tiles is None:
        assert height <= 16 and width <= 48, "one tile alone has no restart markers"
        return
    assert (tiles.width, tiles.height) == (width, height)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    crop = CropBox(left, top, data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top)))
    assert_stack_is_right(pictures, tiles, crop)


@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("blocks", [1, 2, 5, 10])
def test_tiles_of_other_encoders(subsampling: int, blocks: int) -> None:
    picture = by_pillow(subsampling=subsampling, restart_marker_blocks=blocks)
    tiles = tiles_of(picture)
    assert tiles is not None and (tiles.width, tiles.height) == (160, 96)
    assert_stack_is_right([picture], tiles, CropBox(50, 20, 41, 33))


@pytest.mark.parametrize(
    "picture",
    [
        by_pillow(),
        by_pillow(restart_marker_blocks=3),
        by_pillow(restart_marker_blocks=2, progressive=True),
        by_pillow(restart_marker_blocks=2, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
        by_pillow(restart_marker_blocks=2)[:300],
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff\xd9",
    ],
    ids=["none", "uneven", "progressive", "exif", "cut", "empty", "start", "nothing"],
)
def test_other_pictures_have_no_tiles(picture: bytes) -> None:
    assert tiles_of(picture) is None


def test_pictures_that_do_not_belong_together_are_decoded_alone() -> None:
    picture, crop = tiled(160, 96), CropBox(0, 0, 20, 20)
    tiles = tiles_of(picture)
    assert tiles is not None and tiles.stack([picture, picture], crop) is not None
    marker = picture.index(b"\xff\xd0", len(tiles.header))
    for other in (picture[:-2], picture[:marker] + picture[marker + 2 :], tiled(160, 80), by_pillow(), b"", b"\xff"):
        assert tiles.stack([picture, other], crop) is None
    assert tiles.stack([picture] * 2046, crop) is not None, "65,472 lines"
    assert tiles.stack([picture] * 2047, crop) is None


def test_tiles_divide_rows_evenly_and_fit_into_the_encoder() -> None:
    assert [blocks_of_tile(blocks, 15) for blocks in (1, 2, 3, 15, 20, 22, 23, 27)] == [1, 1, 1, 3, 2, 2, 1, 3]
    assert blocks_of_tile(240, 135) == 24  # 3840 x 2160
    assert blocks_of_tile(30, 500) == 5, "the encoder takes no 80,000 rows"


@pytest.mark.parametrize("pixels", [1, 40_000, 1 << 20], ids=["each alone", "two together", "all together"])
def test_clips_are_cut_from_parts_as_from_whole_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int
) -> None:
    monkeypatch.setattr(seek, "_STACKED", pixels)
    source, target = tmp_path / "a.mp4", tmp_path / "b.mkv"
    source.write_bytes(encode(KINDS["h264"]._replace(size=(214, 120)), "mp4", 8))
    repack_clip(Task(source, target, probe(source)), tmp_path / "x", settings_for("mjpeg", short_side=96))
    whole = [frame for _, frame in all_frames(target)]
    assert (whole[0].width, whole[0].height) == (172, 96)
    crops = (CropBox(20, 8, 100, 100), CropBox(112, 20, 100, 100))
    # The same pictures in a container that is read by FFmpeg.
    copy = tmp_path / "c.avi"
    with av.open(str(target)) as old, av.open(str(copy), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if packet.size:
                packet.stream, packet.pts, packet.dts = stream, number, number
                new.mux(packet)
    clip, repeated, later = [0, 2, 3, 4, 5, 7], [0, 1, 1, 3, 4, 7], [2, 3, 4, 5, 6, 7]
    for flip, clips in itertools.product((False, True), ([clip], [repeated], [clip, later])):
        request = ClipRequest("", target, np.array(clips, np.int32), crops, (214, 120), 8, flip=flip)
        found = decode_clips(target, request, size=64)
        assert np.array_equal(found, decode_clips(copy, request, size=64))
