"""Exports predictions as tasks for Label Studio, whose predicted labels a person confirms or corrects.

Beside the tasks, a labeling configuration is written. Videos that were scored as a whole have choices; windows and segments
are timeline labels. Label Studio counts frames from 1, at the rate that the task declares, and a range has both its ends:

    seconds     [0.0 . . . . 2.0)[2.0 . . .        at 12 frames per second
    frames       1 . . . . . 24   25 . . .

`ssv2rt.dataset.labelstudio` reads what was corrected.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ssv2rt.core.atomic_files import write_json, write_text
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.log import escape
from ssv2rt.core.progress import Progress, tracked
from ssv2rt.dataset.labelstudio import CHOICE, LOCAL_FILES, PATH
from ssv2rt.scoring.merge import read_output
from ssv2rt.scoring.metadata import read_metadata
from ssv2rt.scoring.row import Row
from ssv2rt.scoring.video_sources import FILE_SCHEME, Video, path_of_file_url
from ssv2rt.video.container import CLIP_ERRORS, OK, open_video, video_stream
from ssv2rt.video.storage import is_address

logger = logging.getLogger(__name__)

VIDEO, TIMELINE = "video", "timeline"
"""Names of tags in the labeling configuration, beside `CHOICE`."""
_USUAL_RATE = 24.0
"""Frames per second that Label Studio assumes."""
_MANY = 10
"""Labels that are seen at a glance; more can be searched."""
_USED = ("status", "start", "end", "label", "probability")
"""What is used of a row."""
_NOT_IN_XML = re.compile("[^\t\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def export_labelstudio(predictions: Path, out: Path, root: Path) -> dict[str, Any]:
    """Writes tasks with predictions, and the labeling configuration.

    Args:
        predictions: an output of scoring.
        out: a .json file; the configuration has the same name with .xml. Files of these names are replaced.
        root: the folder that Label Studio serves as local files.

    Returns:
        Facts to print.

    Raises:
        UserError: `predictions` is no such file, has nothing to label, or names files outside `root`.
    """
    if not predictions.is_file():
        raise UserError(f"no file '{predictions}'; give an output of `ssv2rt score`")
    names, rows = read_output(predictions)
    metadata = read_metadata(predictions) or {}
    in_windows = "start" in names
    tasks: dict[str, dict[str, Any]] = {}
    left_out, labels = _LeftOut(), dict.fromkeys(map(_plain, metadata.get("labels", ())))
    by_video: dict[str, list[Row]] = {}
    for row in tracked(rows, f"reading {predictions.name}", "rows"):
        by_video.setdefault(row["video"], []).append({key: row[key] for key in _USED if key in row})
    unknown_rates = 0
    with Progress("writing tasks", len(by_video), unit="videos") as progress:
        for name, found in by_video.items():
            progress.add(1)
            good = [{**row, "label": _plain(row["label"])} for row in found if row["status"] == OK]
            if not good or ".tar/" in name:
                left_out.add("cannot be read" if not good else "are in tar files", name)
                continue
            labels.update(dict.fromkeys(row["label"] for row in good))
            data: dict[str, object] = {VIDEO: _url(name, root), PATH: _path(name) or name}
            if in_windows:
                rate = _frame_rate(name)
                unknown_rates += rate is None
                data["fps"] = rate or _USUAL_RATE
                results = _ranges(good, rate or _USUAL_RATE)
            else:
                results = [_result(CHOICE, "choices", {"choices": [good[0]["label"]]}, good[0]["probability"], 0)]
            score = min(result["score"] for result in results)
            prediction = {"model_version": metadata.get("model", "ssv2rt"), "score": score, "result": results}
            tasks[name] = {"data": data, "predictions": [prediction]}
    left_out.log()
    if not tasks:
        raise UserError(f"'{predictions}' has no video that Label Studio could show; give predictions with status ok")
    if unknown_rates:
        logger.warning(
            f"{unknown_rates} videos are not where the file names them any more; their frames are counted at {_USUAL_RATE:g} "
            "per second, as Label Studio does"
        )
    config = configuration_file(out)
    with os_errors_as_user_errors(f"cannot write '{out}'", "choose another --out"):
        write_text(config, _configuration(list(labels), in_windows))
        write_json(out, list(tasks.values()))
    return {"configuration": str(config), "tasks": len(tasks), "left out": left_out.count, "labels": len(labels)}


def configuration_file(out: Path) -> Path:
    """The file of the labeling configuration beside the tasks."""
    return out.with_suffix(".xml")


def _plain(label: str) -> str:
    """A label as one line; characters that XML does not have are written as escapes."""
    return _NOT_IN_XML.sub(lambda found: escape(found[0]), label)


def _result(name: str, kind: str, value: dict[str, Any], score: float, number: int) -> dict[str, Any]:
    names = {"id": f"{kind}-{number}", "from_name": name, "to_name": VIDEO, "type": kind}
    return {**names, "value": value, "score": score}


def _ranges(rows: Iterable[Row], rate: float) -> list[dict[str, Any]]:
    """A timeline label for each window or segment."""
    results = []
    for number, row in enumerate(rows):
        first = math.floor(row["start"] * rate + 0.5) + 1
        last = max(first, math.floor(row["end"] * rate + 0.5))
        value = {"ranges": [{"start": first, "end": last}], "timelinelabels": [row["label"]]}
        results.append(_result(TIMELINE, "timelinelabels", value, row["probability"], number))
    return results


def _frame_rate(name: str) -> float | None:
    """Frames per second of a video; None if it cannot be read any more."""
    try:
        with open_video(Video.at(name).location) as container:
            return round(float(video_stream(container).average_rate or _USUAL_RATE), 6)
    except CLIP_ERRORS:
        return None


def _path(name: str) -> str:
    """The absolute path of a video; empty if its name is the address of another kind of storage."""
    if name.startswith(FILE_SCHEME):
        return path_of_file_url(name)
    return "" if is_address(name) else os.path.abspath(name)


def _url(name: str, root: Path) -> str:
    """The address under which Label Studio gets a video.

    Raises:
        UserError: it is outside the folder that is served.
    """
    path, folder = _path(name), os.path.abspath(root)
    if not path:
        return name
    if os.path.commonpath([path, folder]) != folder:
        raise UserError(f"'{path}' is not below --files-root {root}; give the folder that Label Studio serves")
    if os.path.dirname(path) == folder:
        raise UserError(
            f"'{path}' is in --files-root {root} itself, and Label Studio serves only folders below it; give a folder above"
        )
    return LOCAL_FILES + quote(os.path.relpath(path, folder))


def _configuration(labels: Sequence[str], in_windows: bool) -> str:
    """The labeling configuration, in Label Studio's XML. The video is low enough for the labels to be seen below it."""
    if in_windows:
        rate, name, item = ' frameRate="$fps"', TIMELINE, "Label"
        tag, settings = "TimelineLabels", ""
    else:
        rate, name, item = "", CHOICE, "Choice"
        tag, settings = "Choices", ' choice="single" required="true" layout="inline"'
    items = "".join(f"    <{item} value={quoteattr(label)}/>\n" for label in labels)
    search = f'  <Filter name="search" toName="{name}" minlength="0" placeholder="Find a label"/>\n'
    return (
        f'<View>\n  <Video name="{VIDEO}" value="$video" height="360"{rate}/>\n{search if len(labels) > _MANY else ""}'
        f'  <{tag} name="{name}" toName="{VIDEO}"{settings}>\n{items}  </{tag}>\n</View>\n'
    )


class _LeftOut:
    """Counts videos that no task is written for, by reason, with the first name."""

    def __init__(self) -> None:
        self.count = 0
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str) -> None:
        self.count += 1
        self._counts[reason] = self._counts.get(reason, 0) + 1
        self._first.setdefault(reason, name)

    def log(self) -> None:
        for reason, count in self._counts.items():
            logger.warning(f"{count} videos {reason}, and are left out, such as '{self._first[reason]}'")
