"""What `Model.predict` and `Model.windows` give.

Letters: K classes, D features.
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssv2rt.api.thumbnails import thumbnails
from ssv2rt.scoring.row import EMBEDDING, LOGITS, Row
from ssv2rt.video.container import OK
from ssv2rt.video.storage import VideoLocation


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The classes of a video."""

    video: str
    """Its path or URL, that of a tar file followed by the member's name, or `<bytes 0>` and `<array 0>`, numbered as the
    inputs are."""
    status: str
    """The word ok, or error and the reason, as in the table that `ssv2rt score` writes."""
    frames: int | None
    """Number of frames of the video; None if it could not be read."""
    labels: tuple[str, ...]
    """All K classes, in the order of the network."""
    logits: np.ndarray | None
    """float32 (K,): what the classifier gives; of several views, logarithms of the mean probabilities unless the clip settings
    average logits. None if `status` is an error."""
    embedding: np.ndarray | None = None
    """float32 (D,): the input of the classifier, averaged over the views. Only if it was asked for."""
    location: VideoLocation | None = field(default=None)
    """Where the video can be read again; None of an array."""

    @property
    def ok(self) -> bool:
        """Whether there is a prediction."""
        return self.status == OK

    @property
    def probabilities(self) -> np.ndarray | None:
        """float32 (K,), which add up to 1, in the order of `labels`; None if `status` is an error."""
        if self.logits is None:
            return None
        powers = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return np.asarray(powers / powers.sum(), np.float32)

    @property
    def label(self) -> str | None:
        """The most probable class; None if `status` is an error."""
        return None if self.logits is None else self.labels[int(self.logits.argmax())]

    @property
    def probability(self) -> float | None:
        """The probability of `label`, 0 to 1; None if `status` is an error."""
        return None if (found := self.probabilities) is None else float(found.max())

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k most probable classes with their probabilities, the most probable first; empty if `status` is an error."""
        if (found := self.probabilities) is None:
            return []
        order = np.argsort(-found, kind="stable")[:k]
        return [(self.labels[number], float(found[number])) for number in order]

    def __repr__(self) -> str:
        found = f"{self.label!r}, {self.probability:.3f}" if self.ok else self.status
        return f"<{type(self).__name__} {self._name}: {found}>"

    def _repr_html_(self) -> str:
        """For notebooks: four frames of the video, and the five most probable classes."""
        rows = "".join(
            f"<tr><td style='text-align:left'>{html.escape(label)}</td><td>{probability:.1%}</td></tr>"
            for label, probability in self.top(5)
        ) or html.escape(self.status)
        pictures = thumbnails(self.location) if self.location is not None and self.ok else ""
        return f"<div><b>{html.escape(self._name)}</b><br>{pictures}<table>{rows}</table></div>"

    @property
    def _name(self) -> str:
        return self.video


@dataclass(frozen=True, eq=False, repr=False)
class Window(Prediction):
    """The classes of a window of a video. It has all that a `Prediction` has; `frames` is how many the window has."""

    start: float = 0.0
    """Where the window begins, in seconds from the first frame."""
    end: float = 0.0
    """Where it ends, in seconds from the first frame."""

    @property
    def _name(self) -> str:
        return f"{self.video} [{self.start:g} s, {self.end:g} s)"

    def _repr_html_(self) -> str:
        rows = ", ".join(f"{html.escape(label)} {probability:.1%}" for label, probability in self.top(3))
        return f"<div><b>{html.escape(self._name)}</b> {rows or html.escape(self.status)}</div>"


def facts_of(row: Row, labels: tuple[str, ...], location: VideoLocation | None) -> dict[str, Any]:
    """The fields of a `Prediction` for a row of scoring that has `LOGITS`."""
    return {
        "video": row["video"],
        "status": row["status"],
        "frames": row.get("frames"),
        "labels": labels,
        "logits": _vector(row.get(LOGITS)),
        "embedding": _vector(row.get(EMBEDDING)),
        "location": location,
    }


def _vector(values: object) -> np.ndarray | None:
    return None if values is None else np.asarray(values, np.float32)
