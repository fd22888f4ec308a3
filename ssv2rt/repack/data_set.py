"""Writes the annotations and the manifest of a repacked data set, in SSv2's layout."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from ssv2rt.core.atomic_files import atomic_file, remove_all_partial_files, write_json, write_text
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.annotations import ANSWERS
from ssv2rt.dataset.detect_format import list_clips
from ssv2rt.dataset.labels import class_of_template, read_json
from ssv2rt.dataset.listing import SPLITS, fingerprint, path_to_text
from ssv2rt.dataset.manifest import SCHEMA, Manifest, manifest_paths
from ssv2rt.dataset.manifest_writer import ManifestWriter
from ssv2rt.dataset.quarantine import COLUMNS
from ssv2rt.repack.records import Record
from ssv2rt.repack.settings import clip_name
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)

LEFT_OUT = "source-quarantine.csv"
"""The clips of the source that are not in the repacked data set, with the reasons."""


def write_data_set(out: Path, source: Manifest, records: Mapping[str, Record]) -> tuple[Path, dict[str, int]]:
    """Writes labels, annotations, manifest and the table of clips that were left out.

    Args:
        out: where the videos are.
        source: the data set that was repacked.
        records: of all its clips, by id.

    Returns:
        The path of the manifest, and how many clips were left out by reason.

    Raises:
        UserError: no clip is left in the training or the validation split, or labels cannot be told apart in SSv2's layout.
        OSError: a file cannot be written.
    """
    clips = source.table.select(["id", "path", "split", "label"]).to_pylist()
    good = [clip for clip in clips if records[clip["id"]]["status"] == OK]
    names = _class_names(source.labels)
    remove_all_partial_files(out)
    _write_left_out(out, source.labels, clips, records)
    entries = _source_entries(source)
    answers: dict[str, str] = {}
    listed: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for clip in good:
        label = names[clip["label"]] if clip["label"] >= 0 else ""
        new = clip_name(clip["id"])
        entry = entries.get(clip["id"]) or ({"id": new, "label": label, "template": label} if label else {})
        listed[clip["split"]].append(entry | {"id": new})
        if label and not entry.get("template"):
            answers[new] = label
    for split in ("train", "validation"):
        if not listed[split]:
            raise UserError(f"no {split} clip of '{source.folder}' could be repacked, see '{out / LEFT_OUT}'")
    for split in SPLITS:
        if listed[split]:
            write_json(out / f"{split}.json", listed[split])
    if answers:
        write_text(out / ANSWERS, "".join(f"{clip};{label}\n" for clip, label in answers.items()))
    for name, there in (("test.json", listed["test"]), (ANSWERS, answers)):  # perhaps of an earlier call
        if not there:
            (out / name).unlink(missing_ok=True)
    write_json(out / "labels.json", {name: str(number) for number, name in enumerate(names)})
    reasons: dict[str, int] = {}
    for clip in clips:
        if (status := records[clip["id"]]["status"]) != OK:
            reasons[status] = reasons.get(status, 0) + 1
    return _write_manifest(out, records), reasons


def check_splits(source: Manifest) -> None:
    """Raises UserError unless SSv2's layout can hold the data: it needs training and validation clips, and labels."""
    for split in ("train", "validation"):
        if split not in set(source.table["split"].unique().to_pylist()):
            raise UserError(
                f"'{source.folder}' has no {split} clips, which SSv2's layout needs; give a data set with labels and with "
                f"training and validation clips"
            )
    _class_names(source.labels)


def _class_names(labels: tuple[str, ...]) -> list[str]:
    """Class names as SSv2's annotations can have them: without square brackets, which mark placeholders there.

    Raises:
        UserError: two classes get the same name.
    """
    names = [class_of_template(label) for label in labels]
    if len(set(names)) < len(names) or not all(names):
        twin = next(label for label, name in zip(labels, names, strict=True) if names.count(name) > 1 or not name)
        raise UserError(
            f"the class '{twin}' has no name of its own without square brackets, which SSv2's layout leaves out; rename it"
        )
    for label, name in zip(labels, names, strict=True):
        if label != name:
            logger.warning(f"the class '{label}' is called '{name}': SSv2's layout leaves out square brackets")
    return names


def _source_entries(source: Manifest) -> dict[str, dict[str, Any]]:
    """The source's own annotations by clip id, if it has any: they tell more than the class."""
    found: dict[str, dict[str, Any]] = {}
    for name in source.sources:
        path = source.folder / name
        if path.suffix.lower() == ".json" and path.is_file():
            with contextlib.suppress(UserError):
                entries = read_json(path)
                for entry in entries if isinstance(entries, list) else ():
                    if isinstance(entry, dict) and "id" in entry:
                        found[path_to_text(str(entry["id"]))] = entry
    return found


def _write_left_out(
    out: Path, labels: tuple[str, ...], clips: list[dict[str, Any]], records: Mapping[str, Record]
) -> None:
    rows = [
        (
            clip["path"],
            clip["split"],
            labels[clip["label"]] if clip["label"] >= 0 else "",
            "unusable",
            records[clip["id"]]["status"],
        )
        for clip in clips
        if records[clip["id"]]["status"] != OK
    ]
    if not rows:
        (out / LEFT_OUT).unlink(missing_ok=True)
        return
    columns = {name: pa.array([row[at] for row in rows], pa.string()) for at, name in enumerate(COLUMNS)}
    with atomic_file(out / LEFT_OUT) as temporary, temporary.open("wb") as file:
        pyarrow.csv.write_csv(pa.table(columns), file)


def _write_manifest(out: Path, records: Mapping[str, Record]) -> Path:
    """Writes the manifest that indexing would give, from what is known of the clips."""
    listing = list_clips(out)
    facts = {clip_name(clip): record for clip, record in records.items() if record["status"] == OK}
    rows = [
        facts[clip.id] | {"id": path_to_text(clip.id), "split": clip.split, "label": clip.label}
        for clip in listing.clips
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    sources = tuple(str(source.relative_to(listing.folder)) for source in listing.sources)
    manifest = Manifest(listing.labels, listing.folder, table, sources, fingerprint(listing.folder, listing.sources))
    with ManifestWriter.open(out, manifest_paths(out)[0]) as writer:
        return writer.write(manifest)
