"""Compares a graph of lower precision with the fp32 graph, layer by layer.

ONNX Runtime runs both graphs on the same clips. Its graph optimizations are off, because they give wrong results for Q/DQ
graphs with fp16 scales. The output of each layer is compared, so that its error includes the error of its inputs, which is
reported as the inherited error.
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
from ssv2rt.engines.graph_nodes import node_name
from ssv2rt.engines.node_origin import is_compute_node, node_origins
from ssv2rt.engines.onnx_files import TensorInfo, read_graph, tensors

_MAX_CLIPS_PER_RUN = 8
"""Upper limit of the clips in one run, even if memory allows more."""


@dataclass(frozen=True)
class LayerError:
    """The difference between the outputs of one layer in two graphs. Norms are over all clips."""

    name: str
    """Path of its module in the network, or the node's name if the module is unknown."""
    node: str
    """Name of its node in the fp32 graph."""
    block: str
    op: str
    relative_error: float
    """Norm of the difference divided by the norm of the fp32 output; infinite if a value is not finite."""
    inherited_error: float
    """The largest relative error of the layers that feed this one; 0 for the first layers."""
    sqnr_db: float
    """Signal-to-quantization-noise ratio in decibels: -20 log10 of the relative error."""
    largest_difference: float
    """Largest absolute difference of two values."""
    largest_value: float
    """Largest absolute value in fp32."""
    finite: bool
    """Whether all values of the lower-precision graph are finite."""

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, with None for infinity and NaN, which JSON does not have."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class LayerComparison:
    """The differences of two graphs, layer by layer, in the order of the fp32 graph."""

    layers: tuple[LayerError, ...]
    clips: int
    """How many clips were compared."""
    unmatched: tuple[str, ...]
    """Names of the fp32 graph's nodes that have no counterpart in the other graph."""

    def worst(self, count: int) -> list[LayerError]:
        """The layers with the largest relative error, the largest first."""
        return sorted(self.layers, key=lambda layer: -layer.relative_error)[:count]


@dataclass(frozen=True)
class _MatchedLayer:
    """A layer that both graphs have."""

    node: onnx.NodeProto
    """Its node in the fp32 graph."""
    ours: str
    """Name of its output in the fp32 graph."""
    theirs: str
    """Name of its output in the other graph."""


class _ErrorSums:
    """Running sums of one layer's errors over batches."""

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
    """Runs two graphs of one network on the same clips, and compares the output of each layer that both have.

    Layers are convolutions, matrix products, recurrent layers and additions. They are matched by the name of the node or
    of its output. The clips are kept in memory and run a few at a time. If the compared outputs of one clip need more than
    `memory`, the graphs run several times, each time for a part of the layers.

    Args:
        reference: ONNX file in fp32.
        other: ONNX file of the same network in fp16, or with Q/DQ pairs.
        batches: uint8 clips (N, T, S, S, 3), at least one.
        memory: bytes that the compared outputs of each graph may take, in addition to ONNX Runtime's own memory.

    Raises:
        UserError: there are no clips, a file is not an ONNX graph, the graphs have no layer in common, or ONNX Runtime
            cannot run one of them.
    """
    clips = [batch for batch in batches if len(batch)]
    if not clips:
        raise UserError("no clips to compare layers on; give at least one")
    ours, theirs = read_graph(reference), read_graph(other)
    infos = tensors(ours)
    pairs, unmatched = _match(ours, theirs, infos)
    if not pairs:
        raise UserError(f"'{other}' has no layer of '{reference}'; compare two graphs of the same network")
    sums = {pair.ours: _ErrorSums() for pair in pairs}
    for group in _groups(pairs, infos, memory):
        at_once = max(1, min(_MAX_CLIPS_PER_RUN, memory // max(1, sum(_bytes(pair, infos) for pair in group))))
        first = _LayerSession(ours, [pair.ours for pair in group], reference)
        second = _LayerSession(theirs, [pair.theirs for pair in group], other)
        for part in _split_batches(clips, at_once):
            for pair, our_values, their_values in zip(group, first(part), second(part), strict=True):
                sums[pair.ours].add(our_values, their_values)
        del first, second  # free their memory before the next two are created
    return LayerComparison(tuple(_errors(ours, pairs, sums)), sum(map(len, clips)), unmatched)


def _match(
    ours: onnx.ModelProto, theirs: onnx.ModelProto, infos: Mapping[str, TensorInfo]
) -> tuple[list[_MatchedLayer], tuple[str, ...]]:
    """The layers that both graphs have, and the names of the nodes that only the fp32 graph has."""
    by_name = {node.name: node for node in theirs.graph.node if node.name}
    by_result = {name: node for node in theirs.graph.node for name in node.output if name}
    their_kinds = tensors(theirs)
    pairs, unmatched = [], []
    for node in ours.graph.node:
        if not is_compute_node(node, infos):
            continue
        candidates = (by_name.get(node.name), by_result.get(node.output[0]))
        twin = next((other for other in candidates if other is not None and other.op_type == node.op_type), None)
        if twin is not None and infos[node.output[0]].shape != their_kinds[twin.output[0]].shape:
            twin = None  # its output has other dimensions, so the values cannot be compared
        if twin is None:
            unmatched.append(node_name(node))
        else:
            pairs.append(_MatchedLayer(node, node.output[0], twin.output[0]))
    return pairs, tuple(unmatched)


def _bytes(pair: _MatchedLayer, infos: Mapping[str, TensorInfo]) -> int:
    """Bytes of a layer's output for one clip; an estimate if its shape is unknown."""
    return 4 * math.prod(infos[pair.ours].one_clip or (1 << 20,))


def _groups(
    pairs: Sequence[_MatchedLayer], infos: Mapping[str, TensorInfo], memory: int
) -> Iterator[list[_MatchedLayer]]:
    """Splits the layers into groups whose outputs for one clip fit in memory. A larger layer is a group of its own."""
    group: list[_MatchedLayer] = []
    size = 0
    for pair in pairs:
        more = _bytes(pair, infos)
        if group and size + more > memory:
            yield group
            group, size = [], 0
        group.append(pair)
        size += more
    yield group


def _split_batches(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    for batch in batches:
        for start in range(0, len(batch), size):
            yield batch[start : start + size]


def _errors(
    model: onnx.ModelProto, pairs: Sequence[_MatchedLayer], sums: Mapping[str, _ErrorSums]
) -> Iterator[LayerError]:
    compared = {pair.ours for pair in pairs}
    incoming_error: dict[str, float] = {}  # by tensor: the largest error of the layers that it comes from
    for node, place in zip(model.graph.node, node_origins(model.graph), strict=True):
        inherited = max((incoming_error.get(name, 0.0) for name in node.input), default=0.0)
        if not node.output or node.output[0] not in compared:
            incoming_error.update(dict.fromkeys(node.output, inherited))
            continue
        found = sums[node.output[0]]
        error = found.relative
        incoming_error.update(dict.fromkeys(node.output, error))
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


class _LayerSession:
    """An ONNX Runtime session whose outputs are the given tensors of a graph."""

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], path: Path) -> None:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        exposed = onnx.ModelProto()
        exposed.CopyFrom(model)
        del exposed.graph.output[:]
        exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # errors are raised as exceptions
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
