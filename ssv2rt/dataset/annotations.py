"""SSv2's annotation files, of both generations: which clip belongs to which split and class.

First generation: `something-something-v2-{labels,train,validation,test}.json`.
Second: `{labels,train,validation,test}.json` and `test-answers.csv` (lines `id;label`).
They may lie beside the videos' folder or in `labels/` or `annotations/` below it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.dataset.labels import class_of_template, read_json, read_labels
from ssv2rt.errors import UsageError, UserError, nearest

SPLITS = ("train", "validation", "test")
UNLABELLED = -1

_PREFIXES = ("", "something-something-v2-")
_ANNOTATION_FOLDERS = ("", "labels", "annotations")
_VIDEO_FOLDERS = ("videos", "20bn-something-something-v2", "")


@dataclass(frozen=True)
class Annotations:
    """Class names, and per split the clips' ids and class numbers (`UNLABELLED` where none is given)."""

    labels: tuple[str, ...]
    splits: dict[str, list[tuple[str, int]]]
    videos: Path
    """The folder that holds ID.webm."""


def read_annotations(root: Path) -> Annotations:
    """Reads the annotation files in or below `root`.

    Raises:
        UsageError: there is no such folder.
        UserError: a file is missing, a file is not SSv2's, or a class is not in the label list.
    """
    if not root.is_dir():
        raise UsageError(f"no data folder '{root}'; give --data a folder with SSv2's JSON files and videos/")
    labels_file = _find(root, "labels.json")
    if labels_file is None:
        raise UserError(f"no labels.json in '{root}'; expected SSv2's label and annotation JSON files there")
    labels = read_labels(labels_file)
    prefix = labels_file.name.removesuffix("labels.json")
    splits = {}
    for split in SPLITS:
        path = labels_file.with_name(f"{prefix}{split}.json")
        if path.is_file():
            splits[split] = _read_split(path, labels)
        elif split != "test":
            raise UserError(f"no '{path}'; training needs train.json and validation.json beside labels.json")
    for first, second in itertools.combinations(splits, 2):
        if shared := {clip for clip, _ in splits[first]} & {clip for clip, _ in splits[second]}:
            raise UserError(
                f"{len(shared)} clips, such as '{min(shared)}', are in both {first} and {second}; a split must be held out"
            )
    answers = labels_file.with_name("test-answers.csv")
    if "test" in splits and answers.is_file():
        splits["test"] = _with_answers(splits["test"], answers, labels)
    return Annotations(labels, splits, _video_folder(root))


def _find(root: Path, name: str) -> Path | None:
    for folder in _ANNOTATION_FOLDERS:
        for prefix in _PREFIXES:
            path = root / folder / f"{prefix}{name}"
            if path.is_file():
                return path
    return None


def _video_folder(root: Path) -> Path:
    for name in _VIDEO_FOLDERS:
        folder = root / name
        if folder.is_dir() and (name or any(folder.glob("*.webm"))):
            return folder
    raise UserError(f"no videos in '{root}'; expected '{root / 'videos'}/ID.webm'")


def _read_split(path: Path, labels: tuple[str, ...]) -> list[tuple[str, int]]:
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and "id" in e for e in entries):
        raise UserError(f'{path}: not SSv2\'s annotations; expected [{{"id": "...", "template": "..."}}, ...]')
    if not entries:
        raise UserError(f"{path}: names no clips; download it again")
    index = {name: number for number, name in enumerate(labels)}
    clips = []
    for entry in entries:
        if "template" not in entry:
            clips.append((str(entry["id"]), UNLABELLED))
            continue
        name = class_of_template(str(entry["template"]))
        clips.append((str(entry["id"]), _class_number(name, index, path, str(entry["id"]))))
    seen: set[str] = set()
    for clip, _ in clips:
        if not clip.isprintable() or clip != clip.strip() or "/" in clip or clip in ("", ".", ".."):
            raise UserError(f"{path}: clip id {clip!r} is no name of a file; ids are like '78687'")
        if clip in seen:
            raise UserError(f"{path}: clip '{clip}' is named twice; every id may stand once")
        seen.add(clip)
    return clips


def _with_answers(clips: list[tuple[str, int]], path: Path, labels: tuple[str, ...]) -> list[tuple[str, int]]:
    index = {name: number for number, name in enumerate(labels)}
    answers = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}; download it again") from None
    for line in lines:
        clip, separator, name = line.partition(";")
        if separator:
            answers[clip.strip()] = _class_number(class_of_template(name.strip()), index, path, clip)
    return [(clip, answers.get(clip, number)) for clip, number in clips]


def _class_number(name: str, index: dict[str, int], path: Path, clip: str) -> int:
    if name not in index:
        raise UserError(
            f"{path}: clip '{clip}' has the label '{name}', which labels.json lacks{nearest(name, list(index))}"
        )
    return index[name]
