"""Reads data sets from Label Studio's exports: tasks with the choice that a person made for each video.

JSON        [{"data": {"video": "/data/local-files/?d=clips/1.webm"},
              "annotations": [{"was_cancelled": false, "updated_at": "...",
                               "result": [{"type": "choices", "value": {"choices": ["Pushing something"]}}]}]}, ...]
JSON-MIN    [{"video": "/data/local-files/?d=clips/1.webm", "id": 1, "annotation_id": 3, "updated_at": "...",
              "label": "Pushing something"}, ...]             an entry for each annotation

An export as CSV is a table with the columns path and label, as others; see `tables`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.dataset.labels import check_text, read_json
from ssv2rt.dataset.listing import (
    SPLIT_ALIASES,
    Listing,
    hold_out_validation,
    is_video,
    number_classes,
)

logger = logging.getLogger(__name__)

LOCAL_FILES = "/data/local-files/?d="
"""How Label Studio's addresses of local files begin. The rest is a path below the folder that it serves."""
UPLOADS = "/data/upload/"
"""How addresses of videos begin that were uploaded to Label Studio. The rest is a path below `media/upload` of its data."""
CHOICE = "label"
"""Name of the choices in labeling configurations that this package writes."""
PATH = "path"
"""Key of a task's data under which this package writes the path of the video."""
ROOT, DATA = "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", "LABEL_STUDIO_BASE_DATA_DIR"
"""The environment variables that name the folder that Label Studio serves, and that of its own data."""
_USUAL_DATA = "~/.local/share/label-studio"
_TASK = re.compile(r'"annotations"\s*:\s*\[|"data"\s*:\s*\{|"annotation_id"\s*:')
_NO_LABEL = {
    "none": "have no annotation",
    "skipped": "were skipped",
    "other": "have no choice",
    "timeline": "have timeline labels, which are of parts of a video, where training takes whole ones",
}


def is_label_studio_file(path: Path) -> bool:
    """Whether a file is an export of Label Studio, by its beginning."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        return bool(_TASK.search(file.read(1 << 16)))
    return False


def read_label_studio(path: Path) -> Listing:
    """The clips of an export.

    The newest annotation of a task counts. Tasks without a choice are counted, said and left out. A task's data may have a
    `split`; without it, a clip is for training, and some clips are held out for validation.

    Raises:
        UserError: the file is malformed, no task has a choice, or a video has several labels or splits.
    """
    tasks = read_json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UserError(f"{path}: not an export of Label Studio; expected a list of tasks")
    if tasks and all("data" not in task for task in tasks):
        tasks = _tasks_of_min(tasks, path)
    clips: dict[str, tuple[str, str]] = {}
    left_out: Counter[str] = Counter()
    disagree: list[str] = []
    missing = 0
    for number, task in enumerate(tasks, 1):
        try:
            label, reason, agreed = _label_of(task)
            name = _video_of(task["data"])
            split = str(task["data"].get("split") or "train").lower()
        except (KeyError, TypeError, AttributeError) as error:
            found = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{path}: task {number} is not as Label Studio writes it ({found}); export it again"
            ) from None
        except ValueError as error:
            raise UserError(f"{path}: task {number}: {error}") from None
        if split not in SPLIT_ALIASES:
            raise UserError(f"{path}: task {number} has the split '{split}'{suggest(split, list(SPLIT_ALIASES))}")
        if reason:
            left_out[reason] += 1
            continue
        clip = _local_path(name, path.parent)
        missing += not os.path.lexists(path.parent / clip)
        if not agreed:
            disagree.append(name)
        facts = (SPLIT_ALIASES[split], label)
        if clips.get(clip, facts) != facts:
            raise UserError(
                f"{path}: the video '{name}' is in several tasks with other labels or splits; keep one of them"
            )
        clips[clip] = facts
    for reason, count in left_out.items():
        logger.warning(f"{path}: {count} of {len(tasks)} tasks {_NO_LABEL[reason]}; they are left out")
    if disagree:
        logger.warning(
            f"{path}: annotations of {len(disagree)} tasks disagree, such as those of '{disagree[0]}'; the newest counts"
        )
    if missing:
        logger.warning(
            f"{path}: {missing} videos are not found; local files are looked for below ${ROOT}, '{path.parent}' and /, "
            f"uploaded ones below ${DATA}"
        )
    if not clips:
        raise UserError(f"{path}: no task has a choice for its video; label some, and export them as JSON")
    check_text(tuple(label for _, label in clips.values()), path)
    labels, listed = number_classes([(clip, split, label) for clip, (split, label) in clips.items()])
    return Listing(labels, path.parent, hold_out_validation(listed), [path])


def _tasks_of_min(entries: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Entries of JSON-MIN as tasks of JSON.

    Raises:
        UserError: none has a choice under the name that this package gives to choices.
    """
    if not any(CHOICE in entry for entry in entries):
        raise UserError(
            f"{path}: an export of Label Studio as JSON-MIN, whose entries have no '{CHOICE}'; export it as JSON"
        )
    tasks: dict[Any, dict[str, Any]] = {}
    for number, entry in enumerate(entries, 1):
        choice = entry.get(CHOICE, {})
        choices = choice.get("choices", []) if isinstance(choice, dict) else [choice]
        facts = {key: entry.get(key) for key in ("created_at", "updated_at")} | {"id": entry.get("annotation_id")}
        task = tasks.setdefault(entry.get("id", -number), {"data": entry, "annotations": []})
        task["annotations"].append({"result": [{"type": "choices", "value": {"choices": choices}}], **facts})
    return list(tasks.values())


def _label_of(task: dict[str, Any]) -> tuple[str, str, bool]:
    """The label of a task; or else why it has none, a key of `_NO_LABEL`; and whether its annotations agree."""
    annotations = task.get("annotations", [])
    if not annotations:
        return "", "none", True
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    if not kept:
        return "", "skipped", True
    # Dates are ISO 8601 in UTC, which sort as text.
    kept.sort(key=lambda one: (str(one.get("updated_at") or one.get("created_at") or ""), int(one.get("id") or 0)))
    choices = [choice for annotation in kept if (choice := _choice(annotation["result"]))]
    newest = _choice(kept[-1]["result"])
    if not newest:
        kinds = {result.get("type") for result in kept[-1]["result"]}
        return "", "timeline" if "timelinelabels" in kinds else "other", True
    return newest, "", len(set(choices)) == 1


def _choice(results: list[dict[str, Any]]) -> str:
    """The choice of an annotation; empty if it has none.

    Raises:
        ValueError: it has several.
    """
    chosen = [name for result in results if result.get("type") == "choices" for name in result["value"]["choices"]]
    if len(set(chosen)) > 1:
        raise ValueError(f"several choices ({', '.join(map(str, chosen))}), and a clip has one label; choose one")
    return str(chosen[0]).strip() if chosen else ""


def _video_of(data: dict[str, Any]) -> str:
    """The name of a task's video.

    Raises:
        ValueError: its data has none.
    """
    for key in (PATH, "video"):
        if isinstance(data.get(key), str):
            return str(data[key])
    for name in _texts(data):
        if is_video(unquote(name.partition("#")[0])):
            return name
    raise ValueError("its data names no video; expected the key 'video'")


def _texts(data: dict[str, Any]) -> Iterator[str]:
    return (value for value in data.values() if isinstance(value, str))


def _local_path(name: str, folder: Path) -> str:
    """A path, absolute or relative to `folder`, for a name in a task."""
    if name.startswith("file://"):
        literal = name.removeprefix("file://")
        return literal if os.path.lexists(literal) else unquote(literal)
    if UPLOADS in name and not os.path.lexists(name):
        uploaded = unquote(name.partition(UPLOADS)[2].partition("?")[0])
        return os.path.join(os.path.expanduser(os.environ.get(DATA) or _USUAL_DATA), "media", "upload", uploaded)
    _, local, rest = name.partition(LOCAL_FILES)
    if not local:
        return name
    below = unquote(rest.partition("&")[0]).lstrip("/")
    served = os.environ.get(ROOT)
    places = ([os.path.join(served, below)] if served else []) + [below, f"/{below}"]
    return next((place for place in places if os.path.lexists(folder / place)), below)
