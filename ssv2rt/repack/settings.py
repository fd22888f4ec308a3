"""How clips are repacked: the codecs, the frame size that a recipe needs, and names of files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ssv2rt.core.errors import UsageError, suggest
from ssv2rt.core.recipes import Recipe

SSV2_ASPECT = 16 / 9
"""Width over height of most SSv2 clips."""


@dataclass(frozen=True)
class Codec:
    """A way to code clips."""

    encoder: str
    """FFmpeg's name."""
    muxer: str
    suffix: str
    pixels: str
    quality: int
    """Default of FFmpeg's -q:v (MJPEG) or x264's crf. Lower is better."""
    qualities: range
    multiple: int = 1
    """Sides of frames are multiples of it."""
    least_width: int = 2
    options: Mapping[str, str] = field(default_factory=dict)
    """Of the encoder."""
    runs_on: frozenset[str] = frozenset({"cpu", "gpu", "both"})
    """The values of --for that it is a candidate for."""


def _h264(group: int) -> Codec:
    """H.264 that NVDEC and DALI take without exceptions: whole macroblocks, so that less is never shown than is coded; closed
    groups of pictures; no B frames, so that the orders of decoding and of display are the same.
    """
    x264 = f"keyint={group}:min-keyint={group}:scenecut=0:open-gop=0:bframes=0:ref=1:weightp=0:threads=1"
    return Codec(
        encoder="libx264",
        muxer="mp4",
        suffix=".mp4",
        pixels="yuv420p",
        quality=20,
        qualities=range(1, 52),
        multiple=16,
        least_width=48,  # of NVDEC
        # fastdecode: neither arithmetic coding nor the deblocking filter, which cost a CPU the most.
        options={"preset": "fast", "tune": "fastdecode", "x264-params": x264},
    )


CODECS = {
    "mjpeg": Codec(
        encoder="mjpeg",
        muxer="matroska",
        suffix=".mkv",
        pixels="yuvj420p",
        quality=4,
        qualities=range(2, 32),
        runs_on=frozenset({"cpu"}),  # DALI's decoder on GPUs takes no MJPEG
    ),
    "h264-intra": _h264(1),
    "h264": _h264(8),
}
"""By the names that --codec takes. h264-intra has only key frames; h264 has one in 8 frames, in fewer bytes."""


@dataclass(frozen=True)
class Settings:
    """How every clip of a data set is coded."""

    codec: str
    """A key of `CODECS`."""
    short_side: int
    """Shorter side of frames in pixels; smaller clips keep their size."""
    quality: int
    """See `Codec.quality`."""
    fps: float | None = None
    """Frames per second; None keeps all frames and their times."""

    def __post_init__(self) -> None:
        allowed = self.coding.qualities
        if self.quality not in allowed:
            raise UsageError(
                f"--quality {self.quality}: {self.codec} takes {allowed[0]} (best) to {allowed[-1]}; "
                f"the default is {self.coding.quality}"
            )

    @property
    def coding(self) -> Codec:
        return CODECS[self.codec]

    def frame_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of the coded frames of a clip, given those of its upright frames."""
        codec, scale = self.coding, min(1.0, self.short_side / min(width, height))
        if scale == 1.0 and codec.multiple == 1:
            return width, height
        step = max(2, codec.multiple)
        wide, high = (max(step, step * round(side * scale / step)) for side in (width, height))
        return max(codec.least_width, wide), high


def settings_for(codec: str, *, short_side: int, quality: int | None = None, fps: float | None = None) -> Settings:
    """Settings with the codec's default quality unless one is given.

    Raises:
        UsageError: there is no such codec, or it does not have this quality.
    """
    if codec not in CODECS:
        raise UsageError(f"no codec '{codec}'{suggest(codec, ['auto', *CODECS])}")
    return Settings(codec, short_side, CODECS[codec].quality if quality is None else quality, fps)


def short_side_for(recipe: Recipe) -> int:
    """The shorter side, in pixels, of 16:9 frames of which no square crop of the recipe has to be enlarged.

    These are the center crop of evaluation, and the smallest random crop of training.
    """
    area = recipe.augment.crop_scale[0] * SSV2_ASPECT
    least = recipe.clip.size / min(recipe.clip.center_crop, math.sqrt(area))
    return 2 * math.ceil(least / 2 - 1e-9)


def clip_name(clip: str) -> str:
    """The name of a clip's file, without extension: the id itself, if that can be one.

    Other ids, such as the paths of clips in class folders, are percent-encoded. No two ids give the same name, since a percent
    sign is itself encoded; nor does one have a backslash, which marks escapes in manifests.

    >>> clip_name("78687"), clip_name("train/Pushing/7.mp4")
    ('78687', 'train%2FPushing%2F7.mp4')
    """
    plain = clip.isprintable() and clip == clip.strip() and not set("/%\\") & set(clip) and clip[:1] not in ("", ".")
    name = clip if plain else "".join(_encoded(clip, at) for at in range(len(clip)))
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    # No shorter name has a percent sign before a tilde.
    digest = hashlib.blake2b(clip.encode(), digest_size=16).hexdigest()
    return f"{name.encode()[: _LONGEST_NAME - 40].decode(errors='ignore')}%~{digest}"


_LONGEST_NAME = 200
"""Bytes; file systems allow 255 with the extension."""


def _encoded(text: str, at: int) -> str:
    letter = text[at]
    outer = at in (0, len(text) - 1)
    if (
        letter.isprintable()
        and letter not in "/%\\"
        and not (outer and letter == " ")
        and not (at == 0 and letter == ".")
    ):
        return letter
    return "".join(f"%{byte:02X}" for byte in letter.encode())
