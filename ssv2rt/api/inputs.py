"""What `Model.predict` takes: names of videos, their bytes, and frames in memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ssv2rt.core.errors import UsageError
from ssv2rt.scoring.discover import no_videos_error, videos_of_input
from ssv2rt.scoring.video_sources import Video
from ssv2rt.video.storage import InMemory, is_address

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Input: TypeAlias = "str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor"
"""A path, folder, tar file, URL, pattern or `@list.txt`; the bytes of a video; or uint8 RGB frames (T, H, W, 3)."""


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a video in memory."""

    name: str
    pixels: np.ndarray
    """uint8 RGB (n, H, W, 3)."""


def each_input(inputs: Input | Iterable[Input]) -> Iterator[Video | Frames]:
    """The videos behind inputs, in order. A video that is named twice comes twice.

    Args:
        inputs: one input, or several. The name of a file that does not exist, and a folder without videos, raise an error if
            they are the only input. Among several, the file is given as a video, which cannot be read, and the folder is
            named by a warning.

    Raises:
        UsageError: an input is of another type, an array of another shape, or a pattern that matches nothing.
        UserError: the only input has no videos.
    """
    if isinstance(inputs, (str, os.PathLike, bytes, bytearray)) or hasattr(inputs, "shape"):
        yield from _videos_of(inputs, 0, only=True)
        return
    if not isinstance(inputs, Iterable):
        raise _wrong_type(inputs)
    for number, one in enumerate(inputs):
        if isinstance(one, (str, os.PathLike)) and _is_missing_file(os.fspath(one)):
            yield Video(os.fspath(one), Path(one))
        else:
            yield from _videos_of(one, number)


def _videos_of(one: Any, number: int, *, only: bool = False) -> Iterator[Video | Frames]:
    if isinstance(one, (str, os.PathLike)):
        found = False
        for video, _ in videos_of_input(os.fspath(one)):
            found = True
            yield video
        if not found:
            error = no_videos_error([os.fspath(one)])
            if only:
                raise error
            logger.warning(str(error))
    elif isinstance(one, (bytes, bytearray)):
        name = f"<bytes {number}>"
        yield Video(name, InMemory(name, bytes(one)))
    elif hasattr(one, "shape"):
        yield Frames(f"<array {number}>", _checked_frames(one))
    else:
        raise _wrong_type(one)


def _is_missing_file(name: str) -> bool:
    return not (is_address(name) or name.startswith("@") or any(c in name for c in "*?[") or os.path.lexists(name))


def _checked_frames(array: Any) -> np.ndarray:
    """The frames of an array or tensor as an array: uint8 (n, H, W, 3)."""
    pixels = np.asarray(array.cpu() if hasattr(array, "cpu") else array)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or 0 in pixels.shape:
        raise UsageError(
            f"an array of {pixels.dtype} {pixels.shape}: the frames of a video are uint8 RGB (T, H, W, 3); "
            "several finished clips go to Model.logits"
        )
    return pixels


def _wrong_type(one: object) -> UsageError:
    return UsageError(
        f"an input of type {type(one).__name__}: give a path, a URL, the bytes of a video, or uint8 frames (T, H, W, 3)"
    )
