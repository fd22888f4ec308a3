"""What an output of scoring is made of: the network, its classes in order, the clip settings and the engine.

Parquet files have it as JSON in the metadata of their schema, under the key `KEY`. CSV and JSON-lines files have it in a file
beside them: `preds.csv.meta.json`.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssv2rt import __version__
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Clip
from ssv2rt.engines.bundle import Bundle
from ssv2rt.scoring.segments import Windows

logger = logging.getLogger(__name__)

Metadata = dict[str, Any]
KEY = b"ssv2rt.score"

_SAME = ("weights_sha256", "labels", "clip", "windows")
"""Entries that outputs must share to be merged: otherwise, the same video would have other predictions."""


def output_metadata(
    *,
    model: str,
    weights_sha256: str,
    labels: Sequence[str],
    clip: Clip,
    engine: dict[str, str],
    windows: Windows | None = None,
) -> Metadata:
    """The metadata of an output.

    Args:
        model: name of the network.
        weights_sha256: of the file of weights, or of the ONNX file.
        labels: class names in order, as `logits` has them.
        clip: how clips were sampled.
        engine: what computed the predictions.
        windows: how windows slide; None if each video is scored as a whole.
    """
    return {
        "ssv2rt": __version__,
        "model": model,
        "weights_sha256": weights_sha256,
        "labels": list(labels),
        "clip": clip.model_dump(mode="json"),
        "windows": {"seconds": windows.seconds, "hop": windows.hop, "merged": windows.merge} if windows else None,
        "engines": [engine],
    }


def metadata_of_engine(bundle: Bundle, clip: Clip, windows: Windows | None) -> Metadata:
    """The metadata of an output that an engine computes; `clip` has the views of the call."""
    info = bundle.info
    engine = {"name": bundle.path.name, "sha256": bundle.digest}
    engine |= {name: getattr(info, name) for name in ("backend", "backend_version", "precision", "target")}
    return output_metadata(
        model=info.model,
        weights_sha256=info.weights_sha256,
        labels=info.labels,
        clip=clip,
        engine=engine,
        windows=windows,
    )


def metadata_file(out: Path) -> Path:
    """The file beside a CSV or JSON-lines output that has its metadata."""
    return out.with_name(f"{out.name}.meta.json")


def read_metadata(out: Path) -> Metadata | None:
    """The metadata of an output; None if it has none.

    Raises:
        UserError: it is damaged.
    """
    where = out if out.suffix.lower() == ".parquet" else metadata_file(out)
    text = None
    try:
        if where is not out:
            text = where.read_bytes() if where.exists() else None
        else:
            with contextlib.suppress(pa.ArrowException):  # a damaged table: reading its rows tells so
                text = (pq.read_schema(out).metadata or {}).get(KEY)
        found = None if text is None else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"cannot read the metadata in '{where}': {str(error)[:100]}; score again") from None
    if found is not None and not _is_metadata(found):
        raise UserError(f"'{where}' has no metadata of `ssv2rt score`, or it is damaged; score again, or remove it")
    return found


def _is_metadata(found: object) -> bool:
    """Whether what was read has the entries that are used, with values of their types."""
    if not isinstance(found, dict) or not found.keys() >= {*_SAME, "engines"}:
        return False
    labels, clip, engines = (found[name] for name in ("labels", "clip", "engines"))
    if not (isinstance(labels, list) and isinstance(clip, dict) and isinstance(engines, list)):
        return False
    try:
        Clip(**clip)
    except ValueError:
        return False
    return all(isinstance(label, str) for label in labels) and all(isinstance(engine, dict) for engine in engines)


def merged_metadata(parts: Sequence[Path]) -> Metadata | None:
    """The metadata of several outputs together, with the engines of all; None if none of them has any.

    Raises:
        UserError: they are of different networks, classes or clip settings, or the metadata of one is damaged.
    """
    merged: Metadata | None = None
    first, without = parts[0], []
    for part in parts:
        found = read_metadata(part)
        if found is None:
            without.append(part)
        elif merged is None:
            first, merged = part, found
        else:
            if different := [name for name in _SAME if _complete(found)[name] != _complete(merged)[name]]:
                raise UserError(
                    f"'{part}' has other {' and '.join(different)} than '{first}', so its predictions are not comparable; "
                    f"merge outputs of the same network and settings"
                )
            merged["engines"] += [engine for engine in found["engines"] if engine not in merged["engines"]]
    if merged and without:
        logger.warning(
            f"{len(without)} of {len(parts)} parts, such as '{without[0]}', do not say what scored them; the others' "
            f"metadata is written for all"
        )
    if merged and len(merged["engines"]) > 1:
        names = ", ".join(str(engine.get("name")) for engine in merged["engines"])
        logger.warning(f"the parts were scored by {len(merged['engines'])} engines of the same network: {names}")
    return merged


def _complete(metadata: Metadata) -> Metadata:
    """The same with the clip settings that older outputs lack, at their defaults."""
    return metadata | {"clip": Clip().model_dump(mode="json") | metadata["clip"]}
