"""Mixed precision: finds the blocks that int8 harms most, and how many of them must stay in floating point."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.engines.calibration import ClipSelection
from ssv2rt.engines.node_origin import blocks as blocks_of
from ssv2rt.engines.quantization import QUANTIZED_OPS
from ssv2rt.engines.verify import OnnxRunner
from ssv2rt.pipelines.requests import NO_LABEL

logger = logging.getLogger(__name__)


_MAX_CLIPS = 128
"""Most clips that accuracy is measured on. One point of top-1 is then about one clip."""

QuantizeGraph = Callable[[Path, list[str]], None]
"""Writes the int8 graph to a file, except for the named nodes, which are not quantized."""


@dataclass(frozen=True)
class MixedPrecisionChoice:
    """The blocks that were left in floating point, and the measurements behind the choice."""

    kept: tuple[str, ...]
    """Blocks in floating point, the most sensitive first."""
    sensitivity: dict[str, float]
    """For each block: mean squared change of the logits with only this block in int8, divided by the variance of the
    logits. Empty if the drop was small enough with all blocks in int8."""
    drop_without_any: float
    """Top-1 drop in points with all blocks in int8."""
    drop: float
    """Top-1 drop in points with the kept blocks in floating point."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_blocks(
    float_file: Path, target: Path, clips: ClipSelection, quantize: QuantizeGraph, *, max_drop: float
) -> MixedPrecisionChoice:
    """Writes an int8 graph that loses at most `max_drop` points of top-1, with as few blocks in floating point as possible.

    The blocks are sorted by how much each of them alone in int8 changes the logits. A binary search then finds the smallest
    number of the most sensitive blocks to keep.

    Args:
        float_file: the fp32 graph.
        target: where the int8 graph is written.
        clips: at most 128 of them are used. The label of an unlabeled clip is what the fp32 graph predicts.
        quantize: writes an int8 graph without the given nodes.
        max_drop: largest acceptable top-1 drop, in points.
    """
    pairs = [(batch.clips, batch.labels) for batch in clips.first(_MAX_CLIPS).batches("reading clips")]
    labels = torch.cat([label for _, label in pairs])
    graph = onnx.load(float_file)
    quantizable = {node.name for node in graph.graph.node if node.op_type in QUANTIZED_OPS}
    blocks = {block: names for block, names in blocks_of(graph).items() if quantizable & set(names)}

    def logits(file: Path) -> torch.Tensor:
        runner = OnnxRunner(file, optimize=True)
        return torch.cat([runner(batch) for batch, _ in pairs])

    reference = logits(float_file)
    labels = torch.where(labels == NO_LABEL, reference.argmax(1), labels)

    def top1(answers: torch.Tensor) -> float:
        return 100 * (answers.argmax(1) == labels).double().mean().item()

    def drop_with(kept: list[str]) -> float:
        quantize(target, [name for block in kept for name in blocks[block]])
        return top1(reference) - top1(logits(target))

    at_first = drop_with([])
    if at_first <= max_drop:
        logger.info(
            f"with all blocks in int8, top-1 drops by {at_first:.2f} points on {len(labels)} calibration clips; "
            "no block needs floating point"
        )
        return MixedPrecisionChoice((), {}, at_first, at_first)
    sensitivity = {}
    with Progress("sensitivity", len(blocks), unit="blocks") as progress:
        for block in blocks:
            quantize(target, [name for other, names in blocks.items() if other != block for name in names])
            error = (logits(target) - reference).square().mean() / reference.var()
            sensitivity[block] = float(error)
            progress.add(1, now=block)
    order = sorted(blocks, key=lambda block: -sensitivity[block])
    least, enough = 1, len(order)
    while least < enough:
        middle = (least + enough) // 2
        if drop_with(order[:middle]) <= max_drop:
            enough = middle
        else:
            least = middle + 1
    drop = drop_with(order[:enough])
    kept = tuple(order[:enough])
    logger.info(
        f"top-1 drops by {drop:.2f} points, not {at_first:.2f}, with these in floating point: {', '.join(kept)}"
    )
    return MixedPrecisionChoice(kept, sensitivity, at_first, drop)
