"""What is known of the clips of a repacked data set, and of the call that makes it.

OUT/repack.json                  the source and the settings, written first
OUT/videos/ID.mkv                each appears complete
OUT/.repack/3-of-16/journal      a line for each clip that this shard has done, or could not do
OUT/repack.parquet               the same, of all clips; the journals go when it is written
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt.core.atomic_files import atomic_file, remove_partial_files, write_json
from ssv2rt.core.errors import UserError
from ssv2rt.dataset.listing import path_to_text, text_to_path
from ssv2rt.dataset.manifest import PROBE_FIELDS, REPACK_SETTINGS
from ssv2rt.repack.settings import CODECS, Settings
from ssv2rt.video.container import OK

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the coding. Incremented whenever the same settings give different clips."""
METADATA_KEY = b"ssv2rt.repack"
SOURCE_FIELDS = pa.schema(
    [
        ("id", pa.string()),  # in the source
        ("path", pa.string()),  # of the new file, relative to OUT
        ("source", pa.string()),  # path as in the source's manifest
        ("source_bytes", pa.int64()),
        ("source_mtime_ns", pa.int64()),
        ("source_hash", pa.string()),
    ]
)
SCHEMA = pa.unify_schemas([SOURCE_FIELDS, PROBE_FIELDS])
"""Columns of repack.parquet. Those of `PROBE_FIELDS` are about the new file."""

Record = dict[str, Any]
"""The values of `SCHEMA` for one clip; those of a clip that could not be repacked lack most."""


def settings_file(out: Path) -> Path:
    return out / REPACK_SETTINGS


def records_file(out: Path) -> Path:
    return out / "repack.parquet"


def work_folder(out: Path) -> Path:
    return out / ".repack"


def claimed(out: Path, source: Path) -> Settings | None:
    """The settings that a folder is being filled with; None if it is new or empty.

    Raises:
        UserError: it holds something else.
    """
    file = settings_file(out)
    if not file.is_file():
        remove_partial_files(file)
        if out.is_dir() and any(entry for entry in out.iterdir() if not entry.name.startswith(".repack")):
            raise UserError(f"'{out}' is not empty, and holds no repacked data set; choose a new folder")
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        found = Settings(facts["codec"], facts["short_side"], facts["quality"], facts["fps"])
        held, version = facts["source"], facts["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"'{file}' is damaged; choose another folder, or remove '{out}'") from None
    if held != path_to_text(str(source)):
        raise UserError(f"'{out}' holds a repacked copy of '{held}', not of '{source}'; choose another folder")
    if version != FORMAT:
        raise UserError(f"'{out}' was begun by another version of ssv2rt; choose another folder, or remove it")
    return found


def claim(out: Path, source: Path, settings: Settings) -> None:
    """Notes that a folder is being filled with these settings."""
    write_json(settings_file(out), describe(source, settings))


def describe(source: Path, settings: Settings) -> dict[str, object]:
    """The source and the settings, as in repack.json."""
    return {
        "source": path_to_text(str(source)),
        "codec": settings.codec,
        "short_side": settings.short_side,
        "quality": settings.quality,
        "fps": settings.fps,
        "encoder": CODECS[settings.codec].encoder,
        "options": dict(settings.coding.options),
        "format": FORMAT,
    }


def read_records(out: Path) -> dict[str, Record]:
    """What is known of each clip, by its id in the source. What cannot be read counts as unknown."""
    found: dict[str, Record] = {}
    file = records_file(out)
    if file.is_file():
        try:
            with file.open("rb") as opened:
                rows = pq.read_table(opened, columns=SCHEMA.names).to_pylist()
            found = {row["id"]: row for row in rows}
        except (OSError, pa.ArrowException, ValueError) as error:
            logger.warning(f"'{file}' is damaged ({error}); its clips are repacked again")
    for journal in sorted(work_folder(out).glob("*/journal")):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a kill
            if isinstance(row, dict) and {"id", "status"} <= row.keys():
                found[row["id"]] = row
    return found


def write_records(out: Path, records: Iterable[Record], facts: Mapping[str, object]) -> None:
    """Writes repack.parquet. Raises OSError."""
    table = pa.Table.from_pylist(list(records), schema=SCHEMA)
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(facts).encode()})
    with atomic_file(records_file(out)) as temporary, temporary.open("wb") as file:
        pq.write_table(table, file)


def read_pairs(out: Path) -> list[tuple[Path, Path]]:
    """Source and new file of each clip of a repacked data set, of those that are still there.

    Raises:
        UserError: the folder is no repacked data set, or its source is gone.
    """
    try:
        with records_file(out).open("rb") as opened:
            table = pq.read_table(opened, columns=["path", "source", "status"])
        root = Path(json.loads(table.schema.metadata[METADATA_KEY])["folder"])
    except (OSError, pa.ArrowException, ValueError, LookupError, TypeError):
        raise UserError(f"'{out}' is no complete output of `ssv2rt repack`; give one") from None

    rows = [row for row in table.to_pylist() if row["status"] == OK]
    pairs = [(root / text_to_path(row["source"]), out / row["path"]) for row in rows]
    pairs = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    if not pairs:
        raise UserError(f"none of the clips that '{out}' was made from is in '{root}'; it is needed to compare with")
    return pairs
