"""Scores videos with worker processes; a video that makes its process crash or hang gets an error row."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from ssv2rt.core.worker_pool import WorkerPool
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.scoring.row import IS_LAST, Row, named_row
from ssv2rt.scoring.video_sources import Video

if TYPE_CHECKING:
    from ssv2rt.pipelines.decoder_trust import Decision

logger = logging.getLogger(__name__)


Task = tuple[int, Video]
Answer = list[tuple[int, Row]]


class Supervisor(WorkerPool[Video, Row]):
    """A `WorkerPool` for videos. Suspects are decoded by PyAV."""

    role = "the process that runs the engine"
    remedy = "see whether `ssv2rt doctor` finds what is wrong, or rebuild the engine"

    def score(self, videos: Iterable[Task]) -> Iterator[Answer]:
        """Yields lists of (video number, row); see `WorkerPool.run`. A result is a row: a video's, or one of its windows."""
        return self.run(videos)

    @property
    def trusted(self) -> dict[str, Decision]:
        """Which kinds of videos the workers trust DALI with. A restarted worker gets its own decisions back."""
        return {kind: how for decisions in self.learned("trusted") for kind, how in decisions.items()}

    def failed(self, task: Video, reason: str, exit_code: int | None) -> Row:
        logger.warning(
            f"scoring '{escape_non_utf8(task.name)}' ended its process ({reason}, exit code {exit_code}); "
            f"going on without it"
        )
        return named_row(task.name, {"status": f"error: {reason}"})

    def suspect(self, task: Video) -> Video:
        return replace(task, by_pyav=True)

    def is_last(self, result: Row) -> bool:
        return bool(result.get(IS_LAST, True))
