"""Parameters of H.264 beside what x264 was told to make."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ssv2rt.video.h264 import PARAMETERS, kind_of, read_sequence, units


def parameters(path: Path, width: int, height: int, **options: str) -> bytes:
    """The sequence parameter set of a video that is coded so."""
    with av.open(str(path), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=12, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, options.pop("pixels", "yuv420p")
        stream.time_base = Fraction(1, 12)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 60 * number, np.uint8), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return next(unit for unit in units(path.read_bytes()) if kind_of(unit) == PARAMETERS)


@pytest.mark.parametrize(("width", "height", "cropped"), [(320, 240, False), (340, 256, True), (320, 180, True)])
def test_what_is_cut_off_is_told(tmp_path: Path, width: int, height: int, cropped: bool) -> None:
    unit = parameters(tmp_path / "a.264", width, height)
    assert read_sequence(unit)[:3] == ((-(-width // 16) * 16, -(-height // 16) * 16), True, cropped)


@pytest.mark.parametrize(
    ("options", "frames_only"),
    [
        ({"x264-params": "interlaced=1"}, False),
        ({"profile": "baseline"}, True),
        ({"x264-params": "cqm=jvt"}, True),  # scaling lists
        ({"pixels": "yuv444p"}, True),
        ({"pixels": "yuv420p10le"}, True),
        ({"x264-params": "bframes=3:b-pyramid=normal:ref=5"}, True),
    ],
)
def test_fields_are_told_in_every_profile(tmp_path: Path, options: dict[str, str], frames_only: bool) -> None:
    sequence = read_sequence(parameters(tmp_path / "a.264", 320, 256, **options))
    assert sequence.frames_only == frames_only and not sequence.cropped and not sequence.separate_planes
    assert 4 <= sequence.frame_number_bits <= 16
