"""Videos with what was predicted of them drawn in: label and probability, and the windows of a long video as a timeline."""

from __future__ import annotations

import colorsys
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from threading import Event

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssv2rt.core.atomic_files import atomic_file, remove_all_partial_files
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError, UserError, os_errors_as_user_errors
from ssv2rt.core.log import escape
from ssv2rt.core.progress import Progress, tracked
from ssv2rt.report.fonts import best_font
from ssv2rt.report.html.moments import places_of
from ssv2rt.scoring.merge import read_output
from ssv2rt.scoring.row import EXPECTED, Row
from ssv2rt.video.container import CLIP_ERRORS, OK, BadVideo, as_bad, open_video
from ssv2rt.video.storage import VideoLocation
from ssv2rt.video.timed_frames import SECOND, TimedFrames
from ssv2rt.video.upright import UprightScaler
from ssv2rt.video.write_mp4 import Mp4Writer, cannot_write_reason, comment_of

logger = logging.getLogger(__name__)

LONGEST_SIDE = 640
"""Pixels."""
_FORMAT = 1
"""Changes when videos are drawn in another way, so that finished ones are drawn anew."""
_MOST_LINES = 3
_DRAWN = ("status", "start", "end", "label", "probability", EXPECTED)
"""What is drawn of a row. Only this is kept of outputs, which may have millions of rows."""
_ABANDONED = 3600.0
"""Seconds after which an unfinished file is of a killed process. Shards of a job array may draw into one folder at once."""
_WHITE, _ERROR, _NOTHING = (255, 255, 255), (0, 0, 0), (90, 90, 90)


@dataclass
class Overlays:
    """What was drawn."""

    drawn: int = 0
    kept: int = 0
    """Videos that an earlier call had finished."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why the others are missing."""


def check_overlay_folder(folder: Path) -> None:
    """Checks, before any work is done, that videos can be written to a folder.

    Raises:
        UsageError: it is a file, or below one.
        UserError: no H.264 encoder is there.
    """
    there = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), folder)
    if not there.is_dir():
        raise UsageError(f"--overlay {folder}: '{there}' is not a folder; name one, or a new one")
    if reason := cannot_write_reason():
        raise UserError(f"--overlay: {reason}")


def draw_overlays(predictions: Path, folder: Path) -> Overlays:
    """Writes an MP4 file for each video of an output of scoring; see `overlay_name`.

    Files that an earlier call has finished with the same predictions are kept. Videos without a prediction, and those that
    cannot be read any more, are counted.

    Args:
        predictions: a .csv, .parquet or .jsonl file.
        folder: it is made if it is missing.

    Raises:
        UserError: a file cannot be written.
    """
    by_video: dict[str, list[Row]] = {}
    for row in tracked(read_output(predictions)[1], f"reading {predictions.name}", "rows"):
        by_video.setdefault(row["video"], []).append({key: row[key] for key in _DRAWN if key in row})
    places = places_of(set(by_video))
    done = Overlays()
    with (
        os_errors_as_user_errors(f"cannot write to '{folder}'", "choose another --overlay"),
        Progress("drawing overlays", len(by_video), unit="videos") as progress,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        remove_all_partial_files(folder, older_than=_ABANDONED)
        pool, stop = ThreadPoolExecutor(cores()), Event()
        try:
            for state in pool.map(lambda name: _draw(name, by_video[name], places.get(name), folder, stop), by_video):
                progress.add(1)
                done.drawn += state == "drawn"
                done.kept += state == "kept"
                done.reasons[state] += state not in ("drawn", "kept")
        finally:
            stop.set()  # after an error or Ctrl-C, also what has begun ends
            pool.shutdown(cancel_futures=True)
    done.reasons = +done.reasons
    if done.reasons:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in done.reasons.most_common())
        logger.warning(f"{done.reasons.total()} videos have no overlay ({reasons})")
    return done


def overlay_name(video: str) -> str:
    """The file name for a video: its own with a hash of the whole name, which is always the same and unique."""
    digest = hashlib.blake2b(video.encode(errors="replace"), digest_size=4).hexdigest()
    stem = re.sub(r"[^\w.-]+", "_", os.path.splitext(video.rsplit("/", 1)[-1])[0])[:50].strip("._")
    return f"{stem or 'video'}-{digest}.mp4"


def _draw(name: str, rows: Sequence[Row], place: VideoLocation | None, folder: Path, stop: Event) -> str:
    """Draws a video. Returns "drawn", "kept", or why there is none."""
    path = folder / overlay_name(name)
    if place is None or all(row["status"] != OK for row in rows):
        path.unlink(missing_ok=True)  # of other predictions
        return "missing" if place is None else str(rows[0]["status"].removeprefix("error: "))
    facts = [[row.get(key) for key in _DRAWN] for row in rows]
    digest = hashlib.blake2b(json.dumps([_FORMAT, name, facts]).encode(), digest_size=16).hexdigest()
    if path.is_file() and comment_of(path) == digest:
        return "kept"
    try:
        with atomic_file(path) as temporary:
            _write(place, rows, temporary, digest, stop)
    except BadVideo as error:
        path.unlink(missing_ok=True)
        return str(error)
    return "drawn"


def _write(place: VideoLocation, rows: Sequence[Row], path: Path, digest: str, stop: Event) -> None:
    """Raises BadVideo if the video cannot be read any more, and UserError if the file cannot be written."""
    scaler, drawing, writer = UprightScaler(LONGEST_SIDE), None, None
    try:
        with open_video(place) as container:
            video = TimedFrames(container, threads=1)
            shape = video.stream.codec_context.sample_aspect_ratio or Fraction(1)
            for time, frame in video.frames():
                if stop.is_set():
                    raise KeyboardInterrupt
                if frame is None:
                    continue  # damage: the frame before stays
                picture = scaler.scale(frame, shape)
                if drawing is None or writer is None:
                    assert scaler.size is not None
                    drawing = _Drawing(rows, scaler.size, (video.declared or 0) / SECOND)
                    writer = Mp4Writer(path, scaler.size, digest)
                drawing.draw(picture, time / SECOND)
                writer.add(time, picture)
        assert writer is not None  # a video without frames has raised BadVideo
        writer.close(video.end)
    except BaseException as error:
        if writer is not None:
            writer.abandon()
        if isinstance(error, CLIP_ERRORS) and not isinstance(error, UserError):
            raise as_bad(error, begun=writer is not None) from None
        raise


class _Drawing:
    """Draws the predictions of one video into its frames.

    Args:
        rows: of the video: one, or one for each window or segment.
        size: width and height of a frame.
        seconds: duration, if it is known; at least to the last window.
    """

    def __init__(self, rows: Sequence[Row], size: tuple[int, int], seconds: float) -> None:
        self._size = size
        # An error row without an end is of the rest of the video.
        windows = [{"end": math.inf, **row} for row in rows if "start" in row]
        self._windows = sorted(windows, key=lambda row: (row["start"], row["end"]))
        self._whole = None if self._windows else rows[0]
        self._seconds = max([seconds, 1e-6, *(row["end"] for row in self._windows if row["end"] < math.inf)])
        self._bar = max(4, size[1] // 30) if self._windows else 0
        self._letters = max(8, min(20, min(size) // 16))
        self._captions: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._timeline = self._drawn_timeline()

    def draw(self, picture: np.ndarray, time: float) -> None:
        """Draws into a frame, uint8 RGB (H, W, 3), in place; `time` is in seconds."""
        number = self._window_at(time)
        row = self._whole if self._whole is not None else self._windows[number] if number >= 0 else None
        if row is not None:
            if number not in self._captions:
                text = _text(row)
                font = ImageFont.truetype(best_font(text), self._letters)
                self._captions[number] = _caption(text, self._size[0], self._size[1] - self._bar, font)
            color, opacity = self._captions[number]
            bottom = self._size[1] - self._bar
            under = picture[bottom - len(color) : bottom]
            under[:] = under * (1 - opacity) + color * opacity
        if self._bar:
            picture[-self._bar :] = self._timeline
            at = min(self._size[0] - 2, round(time / self._seconds * self._size[0]))
            picture[-self._bar :, at : at + 2] = _WHITE

    def _window_at(self, time: float) -> int:
        """Number of the window that is shown at a time: the last that has begun, and not ended; -1 if there is none."""
        begun = [number for number, row in enumerate(self._windows) if row["start"] <= time < row["end"]]
        return begun[-1] if begun else -1

    def _drawn_timeline(self) -> np.ndarray:
        """uint8 (bar, W, 3): a color for each label. A window is drawn up to the beginning of the next."""
        bar = np.full((self._bar, self._size[0], 3), _NOTHING, np.uint8)
        labels = list(dict.fromkeys(row["label"] for row in self._windows if row["status"] == OK))
        for row in self._windows:
            left, right = (round(min(1, row[key] / self._seconds) * self._size[0]) for key in ("start", "end"))
            bar[:, left : max(right, left + 1)] = _color(labels.index(row["label"])) if row["status"] == OK else _ERROR
        return bar


def _text(row: Row) -> str:
    if row["status"] != OK:
        return escape(row["status"])
    text = f"{row['probability']:.0%}  {escape(row['label'])}"
    return f"{text}\nexpected: {escape(row[EXPECTED])}" if row.get(EXPECTED) not in (None, row["label"]) else text


def _color(number: int) -> tuple[int, ...]:
    """A color that is far from those of the numbers before it."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb((0.55 + number * 0.618034) % 1, 0.65, 0.9))


def _caption(text: str, width: int, height: int, font: ImageFont.FreeTypeFont) -> tuple[np.ndarray, np.ndarray]:
    """A box with text, as wide as the frame and at most as high: float32 colors (h, W, 3) and opacities (h, W, 1)."""
    edge = max(2, int(font.size) // 4)
    line_height = sum(font.getmetrics())
    most = max(1, min(_MOST_LINES, (height - 2 * edge) // line_height))
    lines = _wrapped(text, width - 2 * edge, font, most)
    high = min(height, len(lines) * line_height + 2 * edge)
    box = Image.new("L", (width, high), 0)
    pen = ImageDraw.Draw(box)
    for number, line in enumerate(lines):
        pen.text((edge, edge + number * line_height), line, fill=255, font=font)
    ink = np.asarray(box, np.float32)[..., None] / 255
    return np.repeat(255 * ink, 3, axis=2), 0.55 + 0.45 * ink


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """Text as lines that are at most `width` pixels wide.

    What does not fit into `most` lines is cut off, with an ellipsis: of each paragraph, so that something of all is seen.
    """
    paragraphs = text.split("\n")[:most]
    wrapped: list[str] = []
    for after, paragraph in zip(reversed(range(len(paragraphs))), paragraphs, strict=True):
        lines, line = [], ""
        for word in re.split(r"(?<=\s)", paragraph):
            if line and font.getlength(f"{line}{word}".rstrip()) > width:
                lines.append(line.rstrip())
                line = ""
            line += word
        lines.append(line.rstrip())
        left = most - after - len(wrapped)
        wrapped += lines if len(lines) <= left else [*lines[: left - 1], f"{lines[left - 1]}…"]
    return [_shortened(line, width, font) for line in wrapped]


def _shortened(line: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """A line that ends in an ellipsis if it is too wide."""
    short = line
    while short and font.getlength(short) > width:
        short = f"{short.removesuffix('…')[:-1]}…" if len(short) > 1 else ""
    return short
