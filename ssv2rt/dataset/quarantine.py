"""Clips that cannot be used or should be looked at, and why."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ssv2rt.dataset.manifest import FACTS, Manifest
from ssv2rt.dataset.video import OK


def with_twins(table: pa.Table) -> pa.Table:
    """The table with a word on clips whose content also stands elsewhere."""
    counts = pc.value_counts(table["hash"].combine_chunks().drop_null())
    doubled = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if not len(doubled):
        return table
    rows = np.flatnonzero(pc.is_in(table["hash"], doubled).to_numpy()).tolist()
    hashes = table["hash"].to_pylist()
    groups: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        groups[hashes[row]].append(row)
    paths, splits = table["path"].to_pylist(), table["split"].to_pylist()
    suspicions = table["suspicion"].to_pylist()
    for members in groups.values():
        for row in members:
            other = members[0] if row != members[0] else members[1]
            where = f"{paths[other]} ({splits[other]})"
            parts = [p for p in (suspicions[row] or "").split("; ") if p and not p.startswith(_SAME)]
            suspicions[row] = "; ".join([*parts, f"{_SAME}{where}"])
    at = table.schema.get_field_index("suspicion")
    return table.set_column(at, FACTS.field("suspicion"), pa.array(suspicions, pa.string()))


_SAME = "same content as "


def quarantine(manifest: Manifest) -> pa.Table:
    """The clips that cannot be used, or should be looked at: path, split, label, status, reason."""
    table = manifest.table
    odd = pc.or_(pc.not_equal(table["status"], OK), pc.not_equal(pc.fill_null(table["suspicion"], ""), ""))
    rows = table.filter(odd)
    names = pa.array([manifest.labels[n] if n >= 0 else "" for n in rows["label"].to_pylist()], pa.string())
    bad = pc.not_equal(rows["status"], OK)
    return pa.table(
        {
            "path": rows["path"],
            "split": rows["split"],
            "label": names,
            "status": pc.if_else(bad, "unusable", "suspicious"),
            "reason": pc.if_else(bad, rows["status"], rows["suspicion"]),
        }
    )


def quarantine_file(path: Path) -> Path:
    """Where the quarantine table of the manifest `path` is: quarantine.csv beside manifest.parquet."""
    beside = path.name.removesuffix("manifest.parquet")
    return path.with_name(f"{beside if beside != path.name else path.stem + '.'}quarantine.csv")
