"""Reads SSv2's annotation files, which assign each clip to a split and a class.

The files are called `something-something-v2-{labels,train,validation,test}.json` in older downloads of SSv2, and
`{labels,train,validation,test}.json` and `test-answers.csv` (lines `id;label`) in newer ones. They may be in the folder of the
data set, or in `labels/` or `annotations/` below it.
"""

from __future__ import annotations

import os
from pathlib import Path

from ssv2rt.core.errors import UserError, nearest
from ssv2rt.dataset.labels import class_of_template, read_json, read_labels
from ssv2rt.dataset.listing import SPLITS, UNLABELED, Clip, Listing, encode_frames, find_picture, is_video

_PREFIXES = ("", "something-something-v2-")
_ANNOTATION_FOLDERS = ("", "labels", "annotations")
_VIDEO_FOLDERS = ("videos", "20bn-something-something-v2", "")


def read_annotations(root: Path) -> Listing | None:
    """The clips in the annotation files in or below `root`; None if there is no SSv2 label list.

    Raises:
        UserError: a file is missing or malformed, or a class is not in the label list.
    """
    labels_file = _find_file(root, "labels.json")
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
    folder, files = _find_videos(root)
    within = "" if folder == root else f"{folder.name}/"
    clips: dict[str, Clip] = {}
    for split, entries in splits.items():
        for clip, label in entries:
            if clip in clips:
                raise UserError(
                    f"clip '{clip}' is in both {clips[clip].split} and {split} of '{root}'; every clip may be in one split"
                )
            clips[clip] = Clip(clip, within + files.get(clip, f"{clip}.webm"), split, label)
    return Listing(labels, root, list(clips.values()), sources)


def read_one_split(path: Path, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Clip ids and class numbers of one annotation file. If it has no labels, they come from `test-answers.csv` beside it.

    Raises:
        UserError: the file is malformed, or a label is not among the classes.
    """
    clips = _read_split(path, classes)
    answers = path.with_name("test-answers.csv")
    if all(label == UNLABELED for _, label in clips) and answers.is_file():
        return _with_answers(clips, answers, classes)
    return clips


def read_answers(path: Path, classes: tuple[str, ...]) -> dict[str, int]:
    """The class number of each clip id in SSv2's `test-answers.csv`, whose lines are `id;label`.

    Raises:
        UserError: the file cannot be read, names no clip or one twice, has a line of another form, or has a label that is
            not among the classes.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}; give SSv2's test-answers.csv") from None
    index = {name: number for number, name in enumerate(classes)}
    answers: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        clip, separator, text = line.partition(";")
        clip = clip.strip()
        if not separator or not _is_clip_id(clip):
            raise UserError(f"{path}: line {number} is {line[:60]!r}; expected id;label, as in SSv2's test-answers.csv")
        if clip in answers:
            raise UserError(f"{path}: clip '{clip}' is named twice; ids must be unique")
        answers[clip] = _class_number(class_of_template(text.strip()), index, path, clip)
    if not answers:
        raise UserError(f"{path}: names no clips; expected lines id;label, as in SSv2's test-answers.csv")
    return answers


def video_folder(annotations: Path) -> Path | None:
    """The folder of the videos for an annotation file in SSv2's usual layout; None if there is none."""
    beside = annotations.absolute().parent
    roots = (beside, beside.parent) if beside.name in _ANNOTATION_FOLDERS else (beside,)
    return next(
        (folder for root in roots for name in _VIDEO_FOLDERS if name and (folder := root / name).is_dir()), None
    )


def _find_file(root: Path, name: str) -> Path | None:
    for folder in _ANNOTATION_FOLDERS:
        for prefix in _PREFIXES:
            path = root / folder / f"{prefix}{name}"
            if path.is_file():
                return path
    return None


def _find_videos(root: Path) -> tuple[Path, dict[str, str]]:
    """The folder with the videos, and the file name for each clip id. If an id has several files, WebM is preferred."""
    for name in _VIDEO_FOLDERS:
        folder = root / name
        if folder.is_dir():
            files: dict[str, str] = {}
            other = ""
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, suffix = os.path.splitext(entry.name)
                    if not is_video(entry.name) or stem.startswith("."):
                        other = entry.path
                    elif stem not in files or suffix == ".webm":
                        files[stem] = entry.name
            if not files and name and other and (picture := find_picture(Path(other))):
                raise UserError(f"no videos in '{folder}', but pictures such as '{picture}'; {encode_frames(picture)}")
            if name or files:
                return folder, files
    raise UserError(f"no videos in '{root}'; expected '{root / 'videos'}/ID.webm'")


def _read_split(path: Path, labels: tuple[str, ...]) -> list[tuple[str, int]]:
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("id"), str | int) for e in entries
    ):
        raise UserError(f'{path}: not SSv2\'s annotations; expected [{{"id": "...", "template": "..."}}, ...]')
    if not entries:
        raise UserError(f"{path}: lists no clips; download it again")
    index = {name: number for number, name in enumerate(labels)}
    clips = []
    for entry in entries:
        if "template" not in entry:
            clips.append((str(entry["id"]), UNLABELED))
            continue
        name = class_of_template(str(entry["template"]))
        clips.append((str(entry["id"]), _class_number(name, index, path, str(entry["id"]))))
    seen: set[str] = set()
    for clip, _ in clips:
        if not _is_clip_id(clip):
            raise UserError(f"{path}: clip id {clip!r} is not a valid file name; ids look like '78687'")
        if clip in seen:
            raise UserError(f"{path}: clip '{clip}' is listed twice; ids must be unique")
        seen.add(clip)
    return clips


def _is_clip_id(text: str) -> bool:
    """Whether a text can be the name of a clip's file, without its extension."""
    return text.isprintable() and text == text.strip() and "/" not in text and text not in ("", ".", "..")


def _with_answers(clips: list[tuple[str, int]], path: Path, labels: tuple[str, ...]) -> list[tuple[str, int]]:
    answers = read_answers(path, labels)
    return [(clip, answers.get(clip, number)) for clip, number in clips]


def _class_number(name: str, index: dict[str, int], path: Path, clip: str) -> int:
    if name not in index:
        raise UserError(
            f"{path}: clip '{clip}' has the label '{name}', which is not among the classes{nearest(name, list(index))}"
        )
    return index[name]
