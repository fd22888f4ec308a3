"""What `score` writes beside its output when it is done: a report, and the videos with their predictions drawn in.

Each is imported only where it is asked for, since that takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssv2rt.report.html.page import check_report_name


@dataclass(frozen=True)
class AfterScoring:
    """Checks the names as soon as it is made, before anything is scored.

    Raises:
        UsageError: a name is impossible.
        UserError: videos cannot be written here.
    """

    report: Path | None = None
    overlay: Path | None = None
    """A folder."""

    def __post_init__(self) -> None:
        if self.report:
            check_report_name(self.report)
        if self.overlay:
            from ssv2rt.report.overlay import check_overlay_folder

            check_overlay_folder(self.overlay)

    def write(self, predictions: Path) -> dict[str, object]:
        """Writes them from an output of scoring, and returns facts to print.

        Raises:
            UserError: a file cannot be written.
        """
        facts: dict[str, object] = {}
        if self.report:
            from ssv2rt.report.html.make import make_report

            make_report(str(predictions), self.report, data=None)
            facts["report"] = str(self.report)
        if self.overlay:
            from ssv2rt.report.overlay import draw_overlays

            done = draw_overlays(predictions, self.overlay)
            facts |= {"overlay": str(self.overlay), "overlays drawn": done.drawn}
            facts |= {"overlays kept": done.kept} if done.kept else {}
        return facts
