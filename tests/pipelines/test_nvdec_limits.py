"""What is sent to NVDEC: only what it takes, for what it refuses costs the batch."""

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssv2rt.pipelines.decoder_choice import decodable
from ssv2rt.pipelines.nvdec_limits import EVERYWHERE, Capabilities, Limit, limits_of, takes
from ssv2rt.video.probe import VideoInfo, probe
from tests.conftest import numbered_video

SSV2 = VideoInfo(49, 427, 240, codec="vp9", pixels="yuv420p")


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"pixels": ""}, True),
        ({"pixels": "yuvj420p", "codec": "mjpeg"}, False),
        ({"width": 120}, False),  # VP9 from 128 x 128 on
        ({"width": 120, "codec": "h264"}, True),
        ({"codec": "hevc"}, False),
        ({"width": 40, "codec": "vp8"}, False),
        ({"width": 5000}, False),
        ({"pixels": "yuv420p10le"}, False),
        ({"pixels": "yuv444p"}, False),
        ({"pixels": "gray"}, False),
        ({"pixels": "", "profile": "Profile 0"}, True),
        ({"pixels": "", "profile": "Profile 2"}, False),
        ({"codec": "av1"}, False),
        ({"codec": "flv1"}, False),
    ],
)
def test_without_asking_only_what_every_nvdec_takes_is_sent_to_it(change: dict[str, object], taken: bool) -> None:
    assert takes(replace(SSV2, **change), EVERYWHERE) == taken  # type: ignore[arg-type]


def test_what_a_gpu_says_of_itself_counts() -> None:
    limits = EVERYWHERE | {("vp9", 1, 10): Limit((128, 128)), ("h264", 3, 12): Limit((144, 144), (640, 480), 100)}
    assert takes(replace(SSV2, pixels="yuv420p10le"), limits) and not takes(replace(SSV2, pixels="yuv420p12le"), limits)
    rare = replace(SSV2, codec="h264", pixels="yuv444p12le", width=160, height=144)
    assert takes(rare, limits) and not takes(replace(rare, width=640), limits)  # 360 blocks
    assert not takes(SSV2, {})


def test_the_structure_is_as_long_as_nvidias() -> None:
    assert ctypes.sizeof(Capabilities) == 88 and Capabilities.least_width.offset == 40


def test_only_nvdec_has_limits(tmp_path: Path) -> None:
    small = probe(numbered_video(tmp_path / "small.webm", "libvpx-vp9", frames=3))
    assert decodable(small, "cpu") and not decodable(small, "mixed") and not decodable(small, "none")
    large = probe(numbered_video(tmp_path / "large.webm", "libvpx-vp9", frames=3, width=427, height=240))
    assert decodable(large, "mixed")


@pytest.mark.gpu
def test_a_gpu_tells_what_it_takes() -> None:
    limits = limits_of(torch.device("cuda", 0))
    assert takes(SSV2, limits) and takes(replace(SSV2, codec="h264"), limits)
    assert limits["h264", 1, 8].most[0] >= 4096 and limits["vp9", 1, 8].least[0] <= 128
