"""Makes a report of whatever is named: a run, an output of scoring, or an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssv2rt.core.errors import UsageError, UserError
from ssv2rt.core.run_folders import Run, find_run, is_run
from ssv2rt.engines.bundle import INFO, open_bundle
from ssv2rt.report.html.of_engine import report_of_engine
from ssv2rt.report.html.of_predictions import MOST, report_of_predictions
from ssv2rt.report.html.of_run import Evaluated, report_of_run
from ssv2rt.report.html.page import check_report_name, write_page


def make_report(source: str | None, out: Path, *, data: Path | None = None, clips: int = MOST, explain: int = 0) -> int:
    """Writes a report, replacing a file of that name.

    Args:
        source: a run, an output of scoring or the folder of an engine; None for the newest run.
        out: the .html file.
        data: data set of the clips; None for the run's.
        clips: how many are shown at most.
        explain: for how many of them Grad-CAM is computed.

    Returns:
        Size of the file in bytes.

    Raises:
        UsageError: `out` is no .html file, or an option does not go with the source.
        UserError: there is no such source, or it cannot be read.
    """
    check_report_name(out)
    write_page(out, _content(source, data=data, clips=clips, explain=explain))
    return out.stat().st_size


def make_report_of_evaluation(run: Run, out: Path, evaluated: Evaluated, *, data: Path | None) -> None:
    """Writes the report of a run with the figures and clips of an evaluation; see `make_report` for what is raised."""
    check_report_name(out)
    write_page(out, report_of_run(run, data=data, clips=MOST, explain=0, evaluated=evaluated))


def _content(source: str | None, *, data: Path | None, clips: int, explain: int) -> dict[str, Any]:
    path = Path(source or "")
    if source and path.is_file():
        if data or explain:
            option = "--data" if data else "--explain"
            raise UsageError(
                f"{option} is for a run; the report of '{source}' shows the videos that it names; leave it out"
            )
        return report_of_predictions(path, clips=clips)
    if source and (path / INFO).is_file():
        if explain:
            raise UsageError(f"--explain {explain} needs gradients, which an engine does not give; name the run")
        return report_of_engine(open_bundle(path), data=data, clips=clips)
    if source and path.suffix and not is_run(path) and not path.is_dir():
        raise UserError(f"no file '{source}'; give a run, an output of `ssv2rt score` or the folder of an engine")
    return report_of_run(find_run(source), data=data, clips=clips, explain=explain)
