"""SSv2's annotation files, of both generations: which clip belongs to which split and class.

First generation: `something-something-v2-{labels,train,validation,test}.json`.
Second: `{labels,train,validation,test}.json` and `test-answers.csv` (lines `id;label`).
They may lie beside the videos' folder or in `labels/` or `annotations/` below it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ssv2rt.core.errors import UserError, nearest
from ssv2rt.dataset.labels import class_of_template, read_json, read_labels
from ssv2rt.dataset.listing import SPLITS, UNLABELLED, Clip, Listing, is_video

_PREFIXES = ("", "something-something-v2-")
_ANNOTATION_FOLDERS = ("", "labels", "annotations")
_VIDEO_FOLDERS = ("videos", "20bn-something-something-v2", "")


def read_annotations(root: Path) -> Listing | None:
    """The clips that the annotation files in or below `root` name; None if it has no label list of SSv2's.

    Raises:
        UserError: a file is missing, a file is not SSv2's, or a class is not in the label list.
    """
    labels_file = _find(root, "labels.json")
    if labels_file is None:
        return None
    labels = read_labels(labels_file)
    prefix = labels_file.name.removesuffix("labels.json")
    splits, sources = {}, [labels_file]
    for split in SPLITS:
        path = labels_file.with_name(f"{prefix}{split}.json")
        if path.is_file():
            splits[split] = _read_split(path, labels)
            sources.append(path)
        elif split != "test":
            raise UserError(f"no '{path}'; training needs train.json and validation.json beside labels.json")
    answers = labels_file.with_name("test-answers.csv")
    if "test" in splits and answers.is_file():
        splits["test"] = _with_answers(splits["test"], answers, labels)
        sources.append(answers)
    folder, files = _videos(root)
    within = "" if folder == root else f"{folder.name}/"
    clips: dict[str, Clip] = {}
    for split, entries in splits.items():
        for clip, label in entries:
            if clip in clips:
                raise UserError(
                    f"clip '{clip}' is in both {clips[clip].split} and {split} of '{root}'; a split must be held out"
                )
            clips[clip] = Clip(clip, within + files.get(clip, f"{clip}.webm"), split, label)
    return Listing(labels, root, list(clips.values()), sources)


def read_one_split(path: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Ids and class numbers of one annotation file, with the answers beside it if it tells no labels.

    Raises:
        UserError: it is not SSv2's, or a label is none of the classes.
    """
    clips = _read_split(path, classes)
    answers = path.with_name("test-answers.csv")
    if all(label == UNLABELLED for _, label in clips) and answers.is_file():
        return _with_answers(clips, answers, classes)
    return clips


def video_folder(annotations: Path) -> Path | None:
    """The folder of the videos that an annotation file is about, as SSv2 is usually laid out."""
    beside = annotations.absolute().parent
    roots = (beside, beside.parent) if beside.name in _ANNOTATION_FOLDERS else (beside,)
    return next(
        (folder for root in roots for name in _VIDEO_FOLDERS if name and (folder := root / name).is_dir()), None
    )


def _find(root: Path, name: str) -> Path | None:
    for folder in _ANNOTATION_FOLDERS:
        for prefix in _PREFIXES:
            path = root / folder / f"{prefix}{name}"
            if path.is_file():
                return path
    return None


def _videos(root: Path) -> tuple[Path, dict[str, str]]:
    """The folder that holds the videos, and the name of the file with each id; of several, WebM before all."""
    for name in _VIDEO_FOLDERS:
        folder = root / name
        if folder.is_dir():
            files: dict[str, str] = {}
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    if is_video(entry.name) and not stem.startswith(".") and (stem not in files or suffix == ".webm"):
                        files[stem] = entry.name
            if name or files:
                return folder, files
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
            f"{path}: clip '{clip}' has the label '{name}', which is none of the classes{nearest(name, list(index))}"
        )
    return index[name]
