"""Videos as they are handed to DALI's decoders: only what is needed, and one packet for each picture.

DALI counts what its decoder gives it: on a GPU every picture that is decoded, hidden ones too, by packets and their times;
on a CPU every frame that is shown. A file of packets in which each holds one picture, with a time of its own, leaves no
doubt which is which:

    packets     K . . [h .] . . . K . [h .] . .        K key frames, h hidden pictures
    wanted                ^   ^                        frames 3 and 5
    handed      K . .  h  . . .                        7 packets
    positions   0 1 2  3  4 5 6                        4 and 6, where hidden pictures count
                0 1 2     3 4 5                        3 and 5, where they do not

Letters: P pictures, U different frames that are wanted.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import av
import av.error
import numpy as np

from ssv2rt.video.container import as_bad, open_video, read_packets, video_stream
from ssv2rt.video.h264 import IDR, PARAMETERS, SequenceParameters, begins_picture, kind_of, read_sequence
from ssv2rt.video.nal import units
from ssv2rt.video.pictures import CODECS as WITH_HEADERS
from ssv2rt.video.pictures import read_pictures
from ssv2rt.video.seek import TIMED, packets_needed
from ssv2rt.video.storage import VideoSource

Counting = Literal["decoded", "shown"]
"""Which pictures a decoder counts."""

_FOURCC = {"vp8": b"VP80", "vp9": b"VP90", "h264": b"H264"}
CODECS = frozenset(_FOURCC)
"""Codecs that are handed over, by FFmpeg's names. Of others FFmpeg, and so DALI, reads no IVF file (HEVC), or packets do not
tell their pictures."""
_FULL = 2
"""FFmpeg's number of the full range, AVCOL_RANGE_JPEG."""
_LOOK_AHEAD = 8
"""Pictures out of which DALI takes the earliest one: num_decode_surfaces_ in its frames_decoder_gpu.h."""


class Unsuitable(Exception):
    """A video of which no such file can be made, and why. PyAV decodes it."""


class Kind(NamedTuple):
    """What videos have in common that a decoder treats alike."""

    codec: str
    pixels: str
    """FFmpeg's name of the pixel format."""
    odd_width: bool
    order: Literal["plain", "hidden", "reordered"]
    """Whether there are hidden pictures, or some that are decoded before others and shown after them."""
    full_range: bool = False
    """Whether black is 0 and white is 255."""

    def __str__(self) -> str:
        extras = [text for text, holds in (("odd width", self.odd_width), ("full range", self.full_range)) if holds]
        return f"{self.codec} {self.pixels}{' of ' * bool(extras)}{' and '.join(extras)}, {self.order}"


class CodedPicture(NamedTuple):
    """A picture before it is decoded."""

    data: bytes
    frame: int
    """Which frame it is, in the order of display. Of a hidden one, that of the next one shown."""
    shown: bool = True
    key: bool = False
    """Whether decoding can begin at it."""
    flaw: str = ""
    """Why it cannot be handed over."""
    full_range: bool = False
    """Whether its header says that black is 0 and white is 255."""


@dataclass(frozen=True)
class CodedVideo:
    """The pictures of a video in the order of decoding."""

    codec: str
    width: int
    height: int
    pixels: str
    pictures: Sequence[CodedPicture]
    full_range: bool = False
    """Whether black is 0 and white is 255."""


@dataclass(frozen=True)
class HandOver:
    """A part of a video, as DALI's decoders take it."""

    file: np.ndarray
    """uint8 (bytes,): an IVF file."""
    kind: Kind
    frames: np.ndarray
    """int32 (U,), rising: the frames that are wanted."""
    decoded: np.ndarray
    """int32 (U,), rising: where they are among the pictures that are decoded."""
    shown: np.ndarray
    """int32 (U,), rising: where they are among the pictures that are shown."""

    def positions(self, counting: Counting) -> np.ndarray:
        """Where a decoder that counts so finds the frames: int32 (U,)."""
        return self.decoded if counting == "decoded" else self.shown


def read_coded(source: VideoSource, *, codec: str, pixels: str = "") -> CodedVideo:
    """Reads the pictures of a video.

    Args:
        source: the video.
        codec: of its stream.
        pixels: pixel format, where it is known; the usual one if not.

    Raises:
        Unsuitable: its packets do not tell which picture is which frame.
        BadVideo: it cannot be read.
    """
    if codec not in CODECS:
        raise Unsuitable(f"{codec} is decoded by PyAV")
    with open_video(source) as container:
        stream = video_stream(container)
        context = stream.codec_context
        if context.height % 2:
            raise Unsuitable("an odd height")  # DALI would write behind the end of the frame
        try:
            if codec in WITH_HEADERS:
                pictures = list(_of_headers(container, stream, codec, (context.width, context.height)))
            else:
                pictures = _of_times(container, stream, (context.width, context.height))
        except av.error.FFmpegError as error:
            raise as_bad(error) from None
        full_range = context.color_range == _FULL or any(picture.full_range for picture in pictures)
        return CodedVideo(codec, context.width, context.height, pixels or "yuv420p", pictures, full_range)


def hand_over(video: CodedVideo, wanted: np.ndarray) -> HandOver:
    """Makes the file that holds what the wanted frames depend on, and nothing else.

    Args:
        video: the pictures.
        wanted: int (K,): frames.

    Raises:
        Unsuitable: it cannot be made.
    """
    pictures, frames = video.pictures, np.unique(wanted).astype(np.int32)
    of_frame = {picture.frame: at for at, picture in enumerate(pictures) if picture.shown}
    if frames[-1] >= len(of_frame):
        raise Unsuitable(f"no frame {frames[-1]}")
    first = np.array([picture.frame for picture in pictures])
    keys = np.array([picture.key for picture in pictures])
    needed = packets_needed(keys, first, np.array([of_frame[n] for n in range(len(of_frame))]), frames)
    kept = np.flatnonzero(needed)
    if not keys[kept[0]]:
        raise Unsuitable("no key frame before the first frame")
    for at in kept.tolist():
        if pictures[at].flaw:
            raise Unsuitable(pictures[at].flaw)
    chosen = [pictures[at] for at in kept.tolist()]
    times, order = _times(chosen)
    shown = np.array([picture.shown for picture in chosen])
    place = {picture.frame: at for at, picture in enumerate(chosen) if picture.shown}
    decoded = times[[place[frame] for frame in frames]]
    before = np.cumsum(shown[np.argsort(times)]) - 1  # of shown pictures, at each time
    return HandOver(
        file=_ivf(video, [picture.data for picture in chosen], times),
        kind=Kind(video.codec, video.pixels, bool(video.width % 2), order, video.full_range),
        frames=frames,
        decoded=decoded.astype(np.int32),
        shown=before[decoded].astype(np.int32),
    )


def _of_headers(
    container: av.container.InputContainer, stream: av.VideoStream, codec: str, size: tuple[int, int]
) -> Iterator[CodedPicture]:
    """Of VP8 and VP9, whose headers tell everything."""
    frame = 0
    for packet in read_packets(container, stream):
        data = bytes(packet)
        for picture in read_pictures(codec, data):
            flaw = ""
            if packet.is_discard:
                flaw = "an edit list leaves frames out"
            elif not picture.decoded:
                flaw = "a picture is shown again"
            elif picture.size not in (None, size):
                flaw = "the size changes"
            yield CodedPicture(
                data[picture.start : picture.end], frame, picture.shown, picture.key, flaw, picture.full_range
            )
            frame += picture.shown


def _of_times(
    container: av.container.InputContainer, stream: av.VideoStream, size: tuple[int, int]
) -> list[CodedPicture]:
    """Of H.264, in containers whose times tell the order of display."""
    if container.format.name.split(",")[0] not in TIMED:
        raise Unsuitable("packets without times")
    convert = av.BitStreamFilterContext("h264_mp4toannexb", stream)
    packets: list[bytes] = []
    stamps: list[int] = []
    for packet in chain(read_packets(container, stream), (None,)):
        if packet is not None:
            if packet.is_discard:
                raise Unsuitable("an edit list leaves frames out")
            if packet.pts is None:
                raise Unsuitable("packets without times")
            stamps.append(packet.pts)
        packets += [bytes(part) for part in convert.filter(packet)]
    number = {stamp: at for at, stamp in enumerate(sorted(set(stamps)))}
    if len(number) < len(stamps) or len(packets) != len(stamps):
        raise Unsuitable("packets share a time")
    parameters: bytes | None = None
    pictures = []
    for data, stamp in zip(packets, stamps, strict=True):
        key, count = False, 0
        for unit in units(data):
            if kind_of(unit) == PARAMETERS and unit != parameters:
                if parameters is not None:
                    raise Unsuitable("the parameters of the stream change")
                parameters = unit
                _check(read_sequence(unit), size)
            key |= kind_of(unit) == IDR
            count += begins_picture(unit)
        if count != 1:
            raise Unsuitable(f"{count} pictures in a packet")
        pictures.append(CodedPicture(data, number[stamp], key=key))
    return pictures


def _check(sequence: SequenceParameters, size: tuple[int, int]) -> None:
    if not sequence.frames_only:
        raise Unsuitable("pictures may be fields")
    # DALI looks for a kept decoder by the size that is coded, and keeps it by the size that is shown: where they differ it
    # makes a decoder for each clip, in more time than PyAV needs for the whole clip, or takes one of another size.
    if sequence.cropped or sequence.size != size:
        raise Unsuitable("less is shown than is coded")


def _times(pictures: Sequence[CodedPicture]) -> tuple[np.ndarray, Literal["plain", "hidden", "reordered"]]:
    """A time for each picture, in the order of decoding: int (P,), each from 0 to P - 1. And how they are ordered.

    Raises:
        Unsuitable: DALI would lose the order of display.
    """
    if not all(picture.shown for picture in pictures):
        return np.arange(len(pictures)), "hidden"
    times = np.argsort(np.argsort([picture.frame for picture in pictures]))
    if np.all(np.diff(times) > 0):
        return times, "plain"
    waiting: list[int] = []
    left: list[int] = []
    for time in times.tolist():
        heapq.heappush(waiting, time)
        if len(waiting) == _LOOK_AHEAD:
            left.append(heapq.heappop(waiting))
    if left != sorted(left) or (left and waiting and left[-1] > waiting[0]):
        raise Unsuitable("pictures are shown too long after they are decoded")
    return times, "reordered"


def _ivf(video: CodedVideo, packets: Sequence[bytes], times: np.ndarray) -> np.ndarray:
    """An IVF file: uint8 (bytes,). Written here, since FFmpeg's writer joins superframes again."""
    header = struct.pack(
        "<4sHH4sHHIIII", b"DKIF", 0, 32, _FOURCC[video.codec], video.width, video.height, 30, 1, len(packets), 0
    )
    parts = [header]
    for data, time in zip(packets, times.tolist(), strict=True):
        parts += [struct.pack("<IQ", len(data), time), data]
    return np.frombuffer(b"".join(parts), np.uint8)
