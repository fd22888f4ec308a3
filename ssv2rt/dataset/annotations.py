"""Reads SSv2's annotation files, which assign each clip to a split and a class.

The files are called `something-something-v2-{labels,train,validation,test}.json` in older downloads of SSv2, and
`{labels,train,validation,test}.json` and `test-answers.csv` (lines `id;label`) in newer ones. They may be in the folder of the
data set, or in `labels/` or `annotations/` below it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from ssv2rt.core.class_names import match_classes
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.labels import check_text, class_of_template, read_json, read_labels
from ssv2rt.dataset.labelstudio import is_label_studio_file
from ssv2rt.dataset.listing import (
    SPLIT_ALIASES,
    SPLITS,
    UNLABELED,
    Clip,
    Listing,
    encode_frames,
    find_picture,
    hold_out_validation,
    is_video,
)

logger = logging.getLogger(__name__)

ANSWERS = "test-answers.csv"

_PREFIXES = ("", "something-something-v2-")
_ANNOTATION_FOLDERS = ("", "labels", "annotations")
_ANSWER = re.compile(r"\s*\d+\s*;")
"""The beginning of `test-answers.csv`. A table of clips that is separated by semicolons begins with its columns."""
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
            splits[split] = _numbered(_read_split(path), labels, path)
            sources.append(path)
        elif split != "test":
            raise UserError(f"no '{path}'; training needs train.json and validation.json beside labels.json")
    answers = labels_file.with_name(ANSWERS)
    if "test" in splits and answers.is_file():
        test = labels_file.with_name(f"{prefix}test.json")
        splits["test"] = _numbered(_with_answers(_read_split(test), answers), labels, answers)
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


def is_annotation_file(path: Path) -> bool:
    """Whether a file is one split of SSv2: `.json` that is not Label Studio's, or `test-answers.csv` under whatever name."""
    if path.suffix.lower() == ".json" or path.name == ANSWERS:
        return path.is_file() and not is_label_studio_file(path)
    if path.suffix.lower() != ".csv" or not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open(encoding="utf-8-sig", errors="replace") as file:
        return bool(_ANSWER.match(file.read(1 << 16)))
    return False


def read_annotation_file(path: Path) -> Listing:
    """The clips of one annotation file, whose videos are as in SSv2's layout.

    The classes are those of the label list beside it, or else those that it names. Its name tells the split; a file of
    another name is training data, of which some is held out for validation.

    Raises:
        UserError: the file or the label list is malformed, or there is no folder of videos.
    """
    texts = read_label_texts(path)
    prefix = next(prefix for prefix in reversed(_PREFIXES) if path.name.startswith(prefix))
    labels_file = path.with_name(f"{prefix}labels.json")
    named = tuple(sorted({text for text in texts.values() if text}))
    labels = read_labels(labels_file) if labels_file.is_file() else named
    split = "test" if path.name == ANSWERS else SPLIT_ALIASES.get(path.stem.removeprefix(prefix).lower(), "")
    videos = video_folder(path)
    if videos is None:
        raise UserError(f"no folder 'videos' beside '{path}' or above it; expected the videos there, as ID.webm")
    folder, files = _find_videos(videos.parent)
    clips = [
        Clip(clip, f"{folder.name}/{files.get(clip, f'{clip}.webm')}", split or "train", label)
        for clip, label in _numbered(texts, labels, path)
    ]
    sources = [file for file in (path, labels_file, path.with_name(ANSWERS)) if file.is_file()]
    return Listing(labels, folder.parent, clips if split else hold_out_validation(clips), sources)


def read_label_texts(path: Path) -> dict[str, str]:
    """By clip id: the label in an annotation file or in `test-answers.csv`; empty if it is not told.

    If an annotation file has no labels, they come from `test-answers.csv` beside it.

    Raises:
        UserError: the file is malformed.
    """
    if path.suffix.lower() != ".json":
        return read_answers(path)
    clips = _read_split(path)
    answers = path.with_name(ANSWERS)
    return _with_answers(clips, answers) if not any(clips.values()) and answers.is_file() else clips


def read_answers(path: Path) -> dict[str, str]:
    """The label of each clip id in SSv2's `test-answers.csv`, whose lines are `id;label`.

    Raises:
        UserError: the file cannot be read, names no clip or one twice, or has a line of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {error}; give SSv2's test-answers.csv") from None
    answers: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        clip, separator, text = line.partition(";")
        clip = clip.strip()
        if not separator or not _is_clip_id(clip):
            raise UserError(f"{path}: line {number} is {line[:60]!r}; expected id;label, as in SSv2's test-answers.csv")
        if clip in answers:
            raise UserError(f"{path}: clip '{clip}' is named twice; ids must be unique")
        answers[clip] = class_of_template(text.strip())
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


def _read_split(path: Path) -> dict[str, str]:
    """By clip id: its label; empty if it is not told."""
    entries = read_json(path)
    if not isinstance(entries, list) or not all(
        isinstance(e, dict) and isinstance(e.get("id"), str | int) for e in entries
    ):
        raise UserError(f'{path}: not SSv2\'s annotations; expected [{{"id": "...", "template": "..."}}, ...]')
    if not entries:
        raise UserError(f"{path}: lists no clips; download it again")
    clips: dict[str, str] = {}
    for entry in entries:
        clip = str(entry["id"])
        if not _is_clip_id(clip):
            raise UserError(f"{path}: clip id {clip!r} is not a valid file name; ids look like '78687'")
        if clip in clips:
            raise UserError(f"{path}: clip '{clip}' is listed twice; ids must be unique")
        clips[clip] = class_of_template(str(entry.get("template", "")))
    check_text(tuple(clips.values()), path)
    return clips


def _is_clip_id(text: str) -> bool:
    """Whether a text can be the name of a clip's file, without its extension."""
    return text.isprintable() and text == text.strip() and "/" not in text and text not in ("", ".", "..")


def _with_answers(clips: dict[str, str], path: Path) -> dict[str, str]:
    answers = read_answers(path)
    return {clip: answers.get(clip, label) for clip, label in clips.items()}


def _numbered(clips: dict[str, str], labels: tuple[str, ...], path: Path) -> list[tuple[str, int]]:
    """Clips with class numbers. Raises UserError if a label is not in the label list."""
    match = match_classes(tuple(dict.fromkeys(label for label in clips.values() if label)), labels)
    if match.unknown:
        clip = next(clip for clip, label in clips.items() if label == match.unknown[0])
        raise UserError(
            f"{path}: clip '{clip}' has the label '{match.unknown[0]}', which is not among the classes"
            f"{match.suggestion(match.unknown[0])}"
        )
    if text := match.spelling_text(f"'{path}'", "the label list"):
        logger.warning(text)
    numbers = dict(zip(match.names, match.numbers.tolist(), strict=True)) | {"": UNLABELED}
    return [(clip, numbers[label]) for clip, label in clips.items()]
