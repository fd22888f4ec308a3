"""Mixed precision: which blocks of a network lose most in int8, and how many of them to leave in floating point."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from ssv2rt.core.progress import Progress
from ssv2rt.engines.calibration import Clips
from ssv2rt.engines.node_origin import blocks as blocks_of
from ssv2rt.engines.quantization import KINDS
from ssv2rt.engines.verify import OnnxRunner

logger = logging.getLogger(__name__)


_CLIPS = 128
"""Clips that drops are measured on: a point is then little more than one of them."""

Quantise = Callable[[Path, list[str]], None]
"""Writes the int8 graph to a file, with some nodes left as they are."""


@dataclass(frozen=True)
class Choice:
    """What was left in floating point, and why."""

    kept: tuple[str, ...]
    """Blocks, the most sensitive first."""
    sensitivity: dict[str, float]
    """For each block: mean squared change of the logits with it alone in int8, as a share of their variance. Empty where
    all of them together were good enough."""
    drop_without_any: float
    """Points of top-1 that are lost with all blocks in int8."""
    drop: float
    """Points of top-1 that are lost with the choice."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_blocks(float_file: Path, target: Path, clips: Clips, quantise: Quantise, *, max_drop: float) -> Choice:
    """Writes an int8 graph that loses at most `max_drop` points of top-1 on the clips, with as few blocks kept as it takes.

    The blocks are put in order by what each of them alone does to the logits; then the smallest number of them, from the
    worst on, is searched by halving.

    Args:
        float_file: the fp32 graph.
        target: where the int8 graph is written.
        clips: labelled.
        quantise: how.
        max_drop: points of top-1.
    """
    few = Clips(clips.split, clips.rows[:_CLIPS], clips.clip, clips.data)
    pairs = [(batch.clips, batch.labels) for batch in few.batches("reading clips")]
    labels = torch.cat([label for _, label in pairs])
    graph = onnx.load(float_file)
    rounded = {node.name for node in graph.graph.node if node.op_type in KINDS}
    blocks = {block: names for block, names in blocks_of(graph).items() if rounded & set(names)}

    def logits(file: Path) -> torch.Tensor:
        runner = OnnxRunner(file, optimise=True)
        return torch.cat([runner(batch) for batch, _ in pairs])

    reference = logits(float_file)

    def top1(answers: torch.Tensor) -> float:
        return 100 * (answers.argmax(1) == labels).double().mean().item()

    def drop_with(kept: list[str]) -> float:
        quantise(target, [name for block in kept for name in blocks[block]])
        return top1(reference) - top1(logits(target))

    at_first = drop_with([])
    if at_first <= max_drop:
        logger.info(
            f"all blocks in int8 lose {at_first:.2f} points of top-1 on {len(labels)} calibration clips; none is kept back"
        )
        return Choice((), {}, at_first, at_first)
    sensitivity = {}
    with Progress("sensitivity", len(blocks), unit="blocks") as progress:
        for block in blocks:
            quantise(target, [name for other, names in blocks.items() if other != block for name in names])
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
    logger.info(f"left in floating point, to lose {drop:.2f} points in place of {at_first:.2f}: {', '.join(kept)}")
    return Choice(kept, sensitivity, at_first, drop)
