"""Which videos DALI's decoder is trusted with. It is told by comparison with PyAV, on the machine where it runs.

Videos are told apart by kind (see `hand_over.Kind`). The first clips of a kind are decoded both ways before any frame of that
kind is handed on. Letters: U frames that are wanted, C frames that they are compared with, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, get_args

import numpy as np

from ssv2rt.pipelines.hand_over import Counting, HandOver, Kind
from ssv2rt.pipelines.loaded_clip import Decoder, GraphFailed
from ssv2rt.video.container import CLIP_ERRORS, reason_of
from ssv2rt.video.seek import frames_needed
from ssv2rt.video.storage import VideoSource

MOST_CLIPS = 4
"""Clips of a kind that are decoded both ways, at most."""
_ENOUGH = 2
"""Clips that have to be right, or wrong."""
LIMIT = 3.0
"""Mean difference, of 255, that two decoders' interpolation of colors explains."""
_COLUMN_LIMIT = 8.0
"""The same of a column of pixels, which has less to average over."""
_DISTINCT = 1.0
"""Mean difference of luma, of 255, by which a frame has to differ from all others to prove anything."""
_NEIGHBORS = 3
"""Frames on either side of a wanted one that it is compared with, too."""
_STEP = 3
"""Only each so many rows and columns are looked at to find the nearest frame."""


@dataclass(frozen=True)
class Decision:
    """Whether a kind of videos is decoded by DALI."""

    counting: Counting | None
    """How its decoder counts pictures; None where PyAV decodes instead."""
    reason: str = ""
    """Why PyAV does."""
    trim: tuple[int, int] = (0, 0)
    """Columns at the left and at the right that the decoder gets wrong, and that are cut off."""
    clips: int = 0
    """That were compared."""

    def __str__(self) -> str:
        if self.counting is None:
            return f"decoded by PyAV: {self.reason}"
        cut = f", without {self.trim[0]} columns at the left and {self.trim[1]} at the right" if any(self.trim) else ""
        return f"as by PyAV in {self.clips} clips{cut}" if self.clips else f"not compared{cut}"

    def as_dict(self) -> dict[str, object]:
        return {"counting": self.counting, "reason": self.reason, "trim": list(self.trim), "clips": self.clips}

    @classmethod
    def of_dict(cls, facts: Mapping[str, Any]) -> Decision | None:
        """What `as_dict` gave; None if it is something else."""
        try:
            left, right = facts["trim"]
            made = cls(facts["counting"], str(facts["reason"]), (int(left), int(right)), int(facts["clips"]))
        except (KeyError, TypeError, ValueError):
            return None
        return made if made.counting in (None, *get_args(Counting)) else None


class FrameDecoder(Protocol):
    """DALI's decoder, as `graph.FrameGraph` has it."""

    def decode(self, handed: HandOver, positions: np.ndarray) -> np.ndarray:
        """Frames at some positions: uint8 RGB (U, H, W, 3). Raises GraphFailed."""


@dataclass
class _Trial:
    """What the clips of a kind have shown so far."""

    clips: int = 0
    right: dict[Counting, int] = field(default_factory=dict)
    trim: tuple[int, int] = (0, 0)
    reason: str = "no clip of which the frames could be told apart"
    wrong: int = 0


class DecoderTrust:
    """The decisions of a process, and how they are made.

    Args:
        decoder: what decodes.
        frames: makes the decoder when it is needed.
        verify: whether clips are compared at all.
        tell: told in one line of each kind that PyAV decodes.
    """

    def __init__(
        self,
        decoder: Decoder,
        frames: Callable[[], FrameDecoder],
        *,
        verify: bool = True,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._decoder, self._make, self._tell = decoder, frames, tell
        self._verify = verify
        self._frames: FrameDecoder | None = None
        self._trials: dict[str, _Trial] = {}
        self.decisions: dict[str, Decision] = {}
        """By kind."""
        self.compared = 0
        """Clips that were decoded both ways."""

    def known_bad(self, kind: Kind) -> bool:
        """Whether PyAV decodes a kind, as far as is known."""
        known = self.decisions.get(str(kind))
        return known is not None and known.counting is None

    def decide(self, source: VideoSource, handed: HandOver) -> Decision:
        """Who decodes a clip. Before its kind is decided on, the clip itself is decoded both ways.

        Args:
            source: the video.
            handed: what is decoded of it.
        """
        name = str(handed.kind)
        if name in self.decisions:
            return self.decisions[name]
        if not self._verify:
            self.decisions[name] = Decision(self._expected(), trim=self._trim(handed.kind))
            return self.decisions[name]
        trial = self._trials.setdefault(name, _Trial(trim=self._trim(handed.kind)))
        trial.clips += 1
        self.compared += 1
        mine = self._compare(trial, source, handed)
        for counting, right in trial.right.items():
            if right >= _ENOUGH:
                self.decisions[name] = Decision(counting, trim=trial.trim, clips=trial.clips)
                return mine
        if trial.wrong >= _ENOUGH or trial.clips >= MOST_CLIPS:
            self.decisions[name] = Decision(None, trial.reason, clips=trial.clips)
            self._tell(f"{_NAMES[self._decoder]}, {name}: {trial.reason}; PyAV decodes such clips")
        return mine

    def _compare(self, trial: _Trial, source: VideoSource, handed: HandOver) -> Decision:
        """Decodes a clip both ways, first counting as its kind is likely to be counted, then the other way."""
        try:
            true = _candidates(source, handed)
        except CLIP_ERRORS as error:
            trial.reason = f"a clip is {reason_of(error)}"
            return Decision(None, trial.reason)
        likely = max(trial.right, key=lambda counting: trial.right[counting], default=self._expected())
        both: tuple[Counting, ...] = (likely, "shown" if likely == "decoded" else "decoded")
        if (handed.decoded == handed.shown).all():
            both = both[:1]
        reasons = []
        for counting in both:
            try:
                self._frames = self._frames or self._make()
                seen = self._frames.decode(handed, handed.positions(counting))
            except GraphFailed as error:
                self._frames = None
                reasons.append(str(error))
                continue
            verdict = judge(seen, true, handed.frames, trim=trial.trim)
            if verdict.reason:
                reasons.append(verdict.reason)
                continue
            trial.trim = verdict.trim
            if verdict.proves:
                trial.right[counting] = trial.right.get(counting, 0) + 1
            return Decision(counting, trim=verdict.trim)
        trial.wrong += 1
        trial.reason = reasons[0]
        return Decision(None, trial.reason)

    def _expected(self) -> Counting:
        return "decoded" if self._decoder == "mixed" else "shown"

    def _trim(self, kind: Kind) -> tuple[int, int]:
        # DALI's kernel for colors writes a column too many of pictures of odd width: over the first one of the next row, which
        # another thread may have written before (VideoColorSpaceConversionKernel in its color_space.cu).
        return (1, 0) if self._decoder == "mixed" and kind.odd_width else (0, 0)


_NAMES = {"mixed": "NVDEC", "cpu": "DALI's CPU decoder", "none": "PyAV"}


@dataclass(frozen=True)
class Verdict:
    """What a comparison shows."""

    reason: str = ""
    """What is wrong; empty where nothing is."""
    proves: bool = False
    """Whether the frames differ enough from their neighbors to be told apart."""
    trim: tuple[int, int] = (0, 0)
    """See `Decision`."""


def judge(seen: np.ndarray, true: Mapping[int, np.ndarray], wanted: np.ndarray, *, trim: tuple[int, int]) -> Verdict:
    """Whether a decoder gave the frames that it was asked for.

    Args:
        seen: uint8 RGB (U, H, W, 3): what it gave.
        true: C frames by their number, uint8 RGB (H, W, 3) each: those that were asked for, and their neighbors.
        wanted: int (U,): which were asked for.
        trim: columns at the left and at the right that are cut off in any case.
    """
    numbers = sorted(true)
    if seen.shape != (len(wanted), *true[numbers[0]].shape):
        return Verdict(f"frames of {seen.shape} instead of {(len(wanted), *true[numbers[0]].shape)}")
    left, right = trim
    inner = slice(left, seen.shape[2] - right)
    asked = np.stack([true[number] for number in wanted.tolist()])[:, :, inner]
    seen = seen[:, :, inner]
    difference = np.abs(seen.astype(np.int16) - asked)
    columns = difference.mean(axis=(0, 1, 3))
    wrong = [int(_COLUMN_LIMIT + columns[1:-1].mean() < column) for column in (columns[0], columns[-1])]
    given = _luma(seen)
    given -= (given - _luma(asked)).mean()  # decoders round colors differently, which is the same in all frames
    few = _luma(np.stack([true[number][:, inner] for number in numbers]))
    told = 0
    for frame, at in zip(given, [numbers.index(number) for number in wanted.tolist()], strict=True):
        if np.delete(_distances(few, few[at]), at).min(initial=np.inf) < _DISTINCT or len(few) == 1:
            continue
        told += 1
        nearest = int(_distances(few, frame).argmin())
        if nearest != at:
            return Verdict(f"it gives frame {numbers[nearest]} for frame {numbers[at]}")
    mean = float(difference[:, :, wrong[0] : difference.shape[2] - wrong[1]].mean())
    if mean >= LIMIT:
        return Verdict(f"colors differ by {mean:.1f} of 255")
    return Verdict(proves=told >= min(3, len(wanted)), trim=(left + wrong[0], right + wrong[1]))


def _luma(frames: np.ndarray) -> np.ndarray:
    """Of RGB frames (N, H, W, 3), each so many rows and columns: float32 (N, h, w)."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
    return frames[:, ::_STEP, ::_STEP].astype(np.float32) @ weights


def _distances(frames: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """Mean difference of a frame (h, w) from each of several (N, h, w): (N,)."""
    return np.abs(frames - frame).mean(axis=(1, 2))


def _candidates(source: VideoSource, handed: HandOver) -> dict[int, np.ndarray]:
    """By PyAV: the wanted frames and those near them, uint8 RGB (H, W, 3), by number."""
    spread = handed.frames[:, None] + np.arange(-_NEIGHBORS, _NEIGHBORS + 1)
    numbers = np.unique(spread[spread >= 0])
    found = {}
    for number, frame in frames_needed(source, 0, numbers):
        if number in numbers:
            found[number] = frame.to_ndarray(format="rgb24")
    return found
