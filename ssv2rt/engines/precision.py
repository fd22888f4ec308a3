"""Writes the graph of an engine in the engine's precision, calibrated where the precision needs it."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import onnx

from ssv2rt.core.recipes import EngineRecipe
from ssv2rt.core.run_folders import optional_cache
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.engines.base import Backend
from ssv2rt.engines.bundle import sha256
from ssv2rt.engines.calibration import ChosenClips, ClipSelection, select_clips
from ssv2rt.engines.half import convert_to_half, set_precision_metadata
from ssv2rt.engines.quantization import convert_to_fp8, fold_weights, quantize
from ssv2rt.engines.sensitivity import choose_blocks
from ssv2rt.engines.source import Source

logger = logging.getLogger(__name__)

CALIBRATED_PRECISIONS = ("int8", "fp8")
"""Precisions whose dynamic ranges are found by calibration."""


def write_graph(
    float_file: Path,
    path: Path,
    source: Source,
    recipe: EngineRecipe,
    engine_backend: Backend,
    data: Manifest | ChosenClips,
) -> dict[str, Any] | None:
    """Writes the graph in the engine's precision.

    Args:
        float_file: the fp32 graph.
        path: file to write. Calibration has temporary files in its folder.
        source: the network of the graph.
        recipe: precision and calibration.
        engine_backend: the backend that the graph is for.
        data: the data set, whose training clips are used for calibration; or chosen clips.

    Returns:
        Settings and results of calibration; None for a precision without.
    """
    precision, settings = recipe.engine.precision, recipe.calibration
    if precision not in CALIBRATED_PRECISIONS:
        write_in_precision(float_file, path, precision, engine_backend)
        return None
    clips = select_clips(source, data, "train", settings.clips, settings.seed)
    if len(clips) < settings.clips:
        logger.warning(f"calibrating on {len(clips)} clips, all that there are; calibration.clips = {settings.clips}")
    for_this_build = path.with_name("ranges.json")
    ranges = _ranges_cache_file(float_file, recipe, clips) or for_this_build
    if ranges.is_file():
        logger.info("taking the ranges of an earlier calibration on the same clips")

    def to_int8(target: Path, keep: list[str]) -> None:
        batches = (batch.clips.numpy() for batch in clips.batches("calibrating"))
        quantize(
            float_file,
            target,
            batches,
            method=settings.method,
            ranges=ranges,
            keep=keep,
            stem=settings.stem,
            head=settings.head,
        )

    found: dict[str, Any] = {**settings.model_dump(), "clips": len(clips), "clips_from": clips.clips_from}
    if settings.max_drop is None:
        to_int8(path, [])
    else:
        found |= choose_blocks(float_file, path, clips, to_int8, max_drop=settings.max_drop).as_dict()
    for_this_build.unlink(missing_ok=True)
    write_in_precision(path, path, precision, engine_backend)
    return found


def write_in_precision(source: Path, target: Path, precision: str, engine_backend: Backend) -> None:
    """Writes the graph that a backend needs for a precision.

    Args:
        source: the fp32 graph, or the int8 graph if the precision is int8 or fp8.
        target: file to write.
        precision: precision of the engine.
        engine_backend: the backend. Those with `WANTS_HALF` need half precision in the graph; the others set it themselves.
    """
    model = onnx.load(source)
    if precision == "fp8":
        model = convert_to_fp8(model)
    if precision in CALIBRATED_PRECISIONS:
        model = fold_weights(model)
    if precision == "fp16" or (engine_backend.WANTS_HALF and precision in ("bf16", *CALIBRATED_PRECISIONS)):
        model = convert_to_half(model, bfloat16=precision == "bf16")
    onnx.save(set_precision_metadata(model, precision), target)


def _ranges_cache_file(float_file: Path, recipe: EngineRecipe, clips: ClipSelection) -> Path | None:
    """The cache file for the dynamic ranges that calibration of this graph on these clips finds; None without a cache.

    The key covers all that the ranges depend on: the graph (weights and tensor names), the clips and their files, the
    version of ONNX Runtime, the method, and whether the classifier is calibrated.
    """
    import onnxruntime

    settings = recipe.calibration
    by = [onnxruntime.__version__, settings.method, settings.head]
    what = [sha256(float_file), clips.clip.model_dump_json(), *by, clips.names]
    key = hashlib.blake2b(json.dumps(what).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    folder = optional_cache("calibration", "the next build of this network calibrates again")
    return folder / f"{key}.json" if folder else None
