"""The quarantine table: clips that are unusable or suspicious, with the reasons."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssv2rt.dataset.manifest import Manifest
from ssv2rt.video.container import OK

COLUMNS = ("path", "split", "label", "status", "reason")


def quarantine(manifest: Manifest) -> pa.Table:
    """The rows of all unusable and suspicious clips, with `COLUMNS`."""
    table = manifest.table
    duplicates = _duplicate_reasons(table)
    flagged = pc.or_(pc.not_equal(table["status"], OK), pc.not_equal(pc.fill_null(table["suspicion"], ""), ""))
    numbers = sorted({*np.flatnonzero(flagged.to_numpy()).tolist(), *duplicates})
    clips = (
        table.select(["path", "split", "label", "status", "suspicion"]).take(pa.array(numbers, pa.int64())).to_pylist()
    )
    rows: dict[str, list[str]] = {name: [] for name in COLUMNS}
    for row, clip in zip(numbers, clips, strict=True):
        bad = clip["status"] != OK
        reasons = [clip["status"]] if bad else [r for r in (clip["suspicion"], duplicates.get(row)) if r]
        label = manifest.labels[clip["label"]] if clip["label"] >= 0 else ""
        facts = (clip["path"], clip["split"], label, "unusable" if bad else "suspicious", "; ".join(reasons))
        for name, fact in zip(COLUMNS, facts, strict=True):
            rows[name].append(fact)
    return pa.table({name: pa.array(values, pa.string()) for name, values in rows.items()})


def _duplicate_reasons(table: pa.Table) -> dict[int, str]:
    """For the row of each clip with the same content as another one, a phrase that names the other clip."""
    counts = pc.value_counts(table["hash"].combine_chunks().drop_null())
    duplicated_hashes = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(duplicated_hashes):
        return {}
    hashes, paths, splits = (table[name].to_pylist() for name in ("hash", "path", "split"))
    groups: dict[str, list[int]] = defaultdict(list)
    for row in np.flatnonzero(pc.is_in(table["hash"], duplicated_hashes).to_numpy()).tolist():
        groups[hashes[row]].append(row)
    result = {}
    for members in groups.values():
        for row in members:
            other = members[0] if row != members[0] else members[1]
            result[row] = f"same content as {paths[other]} ({splits[other]})"
    return result


def quarantine_file(path: Path) -> Path:
    """The path of the quarantine table of the manifest `path`: quarantine.csv beside manifest.parquet."""
    beside = path.name.removesuffix("manifest.parquet")
    return path.with_name(f"{beside if beside != path.name else path.stem + '.'}quarantine.csv")
