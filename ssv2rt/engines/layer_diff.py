"""Where a graph of lower precision departs from the one in fp32, layer by layer.

Both run on the same clips by ONNX Runtime, with its optimisations off: they are wrong for Q/DQ graphs with fp16 scales.
What is compared is what leaves a layer, so that its error is its own and what came in; the latter is told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ssv2rt.core.errors import UserError
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.node_origin import computes, node_name, places
from ssv2rt.engines.onnx_files import Tensor, read_graph, tensors

_MOST_CLIPS = 8
"""That run at once, whatever the memory."""


@dataclass(frozen=True)
class LayerError:
    """How what leaves one layer differs between two graphs. Norms are over all clips."""

    name: str
    """Path of its module in the network, or the node's name where that is not known."""
    node: str
    """Its name in the fp32 graph."""
    block: str
    op: str
    relative_error: float
    """Norm of the difference over norm of the fp32 values; infinite if a value is not finite."""
    inherited_error: float
    """The largest relative error among the layers that feed it; 0 for the first ones."""
    sqnr_db: float
    """Signal-to-quantisation-noise ratio in decibels: -20 log10 of the relative error."""
    largest_difference: float
    largest_value: float
    """In fp32."""
    finite: bool
    """Whether all values of the other graph are."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has no infinity: None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class LayerComparison:
    """Two graphs, layer by layer, in the order of the fp32 graph."""

    layers: tuple[LayerError, ...]
    clips: int
    unmatched: tuple[str, ...]
    """Nodes of the fp32 graph that the other has no counterpart of."""

    def worst(self, count: int) -> list[LayerError]:
        """The layers with the largest relative error, the largest first."""
        return sorted(self.layers, key=lambda layer: -layer.relative_error)[:count]


@dataclass(frozen=True)
class _Pair:
    """A layer that both graphs have."""

    node: onnx.NodeProto
    ours: str
    """Tensor of the fp32 graph."""
    theirs: str


class _Sums:
    """What is kept of one layer from batch to batch."""

    def __init__(self) -> None:
        self.signal = self.noise = self.difference = self.value = 0.0
        self.finite = True

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        theirs = theirs.astype(np.float32)
        self.value = max(self.value, float(np.abs(ours).max(initial=0)))
        if not np.isfinite(theirs).all():
            self.finite = False
            return
        difference = ours - theirs
        self.signal += float(np.square(ours).sum(dtype=np.float64))
        self.noise += float(np.square(difference).sum(dtype=np.float64))
        self.difference = max(self.difference, float(np.abs(difference).max(initial=0)))

    @property
    def relative(self) -> float:
        if not self.finite:
            return math.inf
        return math.sqrt(self.noise / self.signal) if self.signal else (math.inf if self.noise else 0.0)


def compare_layers(
    reference: Path, other: Path, batches: Iterable[np.ndarray], *, memory: int = 1 << 30
) -> LayerComparison:
    """Runs two graphs of one network on the same clips, and compares what leaves each layer that both have.

    Those are convolutions, matrix products, recurrent layers and additions, matched by the name of the node or of its
    result. Clips are kept, and run a few at a time; where the values of one clip take more than `memory`, the graphs are
    run several times, each time for some of the layers.

    Args:
        reference: ONNX file in fp32.
        other: ONNX file of the same network in fp16, or with Q/DQ pairs.
        batches: uint8 clips (N, T, S, S, 3), at least one.
        memory: bytes that the compared values of each graph may take; what ONNX Runtime works with comes on top.

    Raises:
        UserError: no clips, a file that is no graph, nothing to compare, or ONNX Runtime cannot run one of them.
    """
    clips = [batch for batch in batches if len(batch)]
    if not clips:
        raise UserError("no clips to compare layers on; give at least one")
    ours, theirs = read_graph(reference), read_graph(other)
    kinds = tensors(ours)
    pairs, unmatched = _match(ours, theirs, kinds)
    if not pairs:
        raise UserError(f"'{other}' has no layer of '{reference}'; compare two graphs of the same network")
    sums = {pair.ours: _Sums() for pair in pairs}
    for group in _groups(pairs, kinds, memory):
        at_once = max(1, min(_MOST_CLIPS, memory // max(1, sum(_bytes(pair, kinds) for pair in group))))
        first = _Session(ours, [pair.ours for pair in group], reference)
        second = _Session(theirs, [pair.theirs for pair in group], other)
        for part in _parts(clips, at_once):
            for pair, our_values, their_values in zip(group, first(part), second(part), strict=True):
                sums[pair.ours].add(our_values, their_values)
        del first, second  # before the next ones are made
    return LayerComparison(tuple(_errors(ours, pairs, sums)), sum(map(len, clips)), unmatched)


def _match(
    ours: onnx.ModelProto, theirs: onnx.ModelProto, kinds: Mapping[str, Tensor]
) -> tuple[list[_Pair], tuple[str, ...]]:
    """The layers of both graphs, and the names of those that only ours has."""
    by_name = {node.name: node for node in theirs.graph.node if node.name}
    by_result = {name: node for node in theirs.graph.node for name in node.output if name}
    their_kinds = tensors(theirs)
    pairs, unmatched = [], []
    for node in ours.graph.node:
        if not computes(node, kinds):
            continue
        candidates = (by_name.get(node.name), by_result.get(node.output[0]))
        twin = next((other for other in candidates if other is not None and other.op_type == node.op_type), None)
        if twin is not None and kinds[node.output[0]].shape != their_kinds[twin.output[0]].shape:
            twin = None  # its result is laid out in another way
        if twin is None:
            unmatched.append(node_name(node))
        else:
            pairs.append(_Pair(node, node.output[0], twin.output[0]))
    return pairs, tuple(unmatched)


def _bytes(pair: _Pair, kinds: Mapping[str, Tensor]) -> int:
    """Of what leaves a layer, for one clip; a guess where its shape is not known."""
    return 4 * math.prod(kinds[pair.ours].one or (1 << 20,))


def _groups(pairs: Sequence[_Pair], kinds: Mapping[str, Tensor], memory: int) -> Iterator[list[_Pair]]:
    """Layers in runs that fit the memory for one clip; a layer that does not is one by itself."""
    group: list[_Pair] = []
    size = 0
    for pair in pairs:
        more = _bytes(pair, kinds)
        if group and size + more > memory:
            yield group
            group, size = [], 0
        group.append(pair)
        size += more
    yield group


def _parts(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def _errors(model: onnx.ModelProto, pairs: Sequence[_Pair], sums: Mapping[str, _Sums]) -> Iterator[LayerError]:
    compared = {pair.ours for pair in pairs}
    arriving: dict[str, float] = {}  # the error that comes along each tensor, from the layers before it
    for node, place in zip(model.graph.node, places(model.graph), strict=True):
        inherited = max((arriving.get(name, 0.0) for name in node.input), default=0.0)
        if not node.output or node.output[0] not in compared:
            arriving.update(dict.fromkeys(node.output, inherited))
            continue
        found = sums[node.output[0]]
        error = found.relative
        arriving.update(dict.fromkeys(node.output, error))
        yield LayerError(
            name=place.module or node_name(node),
            node=node_name(node),
            block=place.block,
            op=node.op_type,
            relative_error=error,
            inherited_error=inherited,
            sqnr_db=-20 * math.log10(error) if 0 < error < math.inf else (-math.inf if error else math.inf),
            largest_difference=found.difference if found.finite else math.inf,
            largest_value=found.value,
            finite=found.finite,
        )


class _Session:
    """A graph that gives what leaves some of its layers."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], path: Path) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        self._names = list(names)
        try:
            self._session = onnxruntime.InferenceSession(
                exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (errors.Fail, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"ONNX Runtime cannot run '{path}' ({reason}); compare fp32 with fp16 or int8") from None

    def __call__(self, clips: np.ndarray) -> list[np.ndarray]:
        values: list[np.ndarray] = self._session.run(self._names, {INPUT: clips})
        return values
