"""Verifies graphs and engines against the fp32 network that they were made from, on clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import Gate
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.calibration import ClipSelection
from ssv2rt.engines.export import EMBEDDING, INPUT, OUTPUT
from ssv2rt.engines.source import Source
from ssv2rt.pipelines.loader import ClipBatch
from ssv2rt.pipelines.requests import NO_LABEL

_EXPORT_TOLERANCE = 1e-4
"""Difference between ONNX Runtime and PyTorch that fp32 rounding can explain, relative to the largest value."""


_LEAST_SIMILARITY = 0.9
"""Of embeddings: what no precision loses, so that the backend must compute the graph wrong. int8 loses 0.01 or so."""


@dataclass(frozen=True)
class Verification:
    """Results of an engine and of the fp32 model on the same clips. Shares are in percent."""

    clips: int
    agreement: float
    """Share of clips for which both predict the same class."""
    top1_model: float | None
    """Top-1 accuracy of the fp32 network; None if no clip has a label."""
    top1_engine: float | None
    largest_difference: float
    """Largest absolute difference between the probabilities of a class."""
    mean_difference: float
    """Mean absolute difference between the probabilities of a class."""
    embedding_similarity: float | None
    """Mean cosine similarity of the two embeddings; None if the graph has no embedding output."""
    finite: bool
    """Whether all outputs of the engine are finite."""

    @property
    def top1_drop(self) -> float | None:
        """Top-1 accuracy that the engine loses, in points; negative if it gains; None if no clip has a label."""
        if self.top1_model is None or self.top1_engine is None:
            return None
        return self.top1_model - self.top1_engine

    def failures(self, gate: Gate) -> list[str]:
        """The reasons why the engine fails the gate, one sentence each; empty if it passes."""
        found = []
        if not self.finite:
            found.append("what the engine gives is not all finite")
        if self.embedding_similarity is not None and not self.embedding_similarity >= _LEAST_SIMILARITY:
            found.append(
                f"its features are not those of the network: their cosine similarity is {self.embedding_similarity:.3f}, and "
                f"at least {_LEAST_SIMILARITY} is expected in any precision; the backend computes this graph wrong"
            )
        if self.agreement < gate.min_agreement:
            found.append(
                f"it agrees on {self.agreement:.2f}% of the clips, and gate.min_agreement = {gate.min_agreement:g}"
            )
        if self.top1_drop is not None and self.top1_drop > gate.max_top1_drop:
            found.append(f"top-1 falls by {self.top1_drop:.2f} points, and gate.max_top1_drop = {gate.max_top1_drop:g}")
        return found

    def notes(self, gate: Gate) -> list[str]:
        """What of the gate could not be checked, or on fewer clips than it asks for, one line each."""
        found = []
        if self.clips < gate.clips:
            found.append(f"compared on {self.clips} clips, and gate.clips = {gate.clips}")
        if self.top1_drop is None:
            limit = (
                f", so gate.max_top1_drop = {gate.max_top1_drop:g} is not checked" if gate.max_top1_drop < 100 else ""
            )
            found.append(f"accuracy is not measured: the clips have no labels{limit}")
        return found

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "top1_drop": self.top1_drop}


class OnnxRunner(Runner):
    """Runs an ONNX graph with ONNX Runtime on the CPU.

    Args:
        onnx_file: the graph.
        optimize: enables graph optimizations, which are faster but give wrong results for Q/DQ graphs with fp16 scales.

    Raises:
        UserError: ONNX Runtime cannot load the graph, or, from `start`, cannot run it.
    """

    def __init__(self, onnx_file: Path, *, optimize: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if not optimize:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # errors are raised as exceptions
        with onnxruntime_errors_as_user_errors():
            self._session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
        given = {value.name for value in self._session.get_outputs()}
        self._names = [name for name in (OUTPUT, EMBEDDING) if name in given]

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        with onnxruntime_errors_as_user_errors():
            logits, *more = map(torch.from_numpy, self._session.run(self._names, {INPUT: clips.numpy()}))
        outputs = Outputs(logits, more[0] if more else None)
        return lambda: outputs


@contextmanager
def onnxruntime_errors_as_user_errors(
    fix: str = "export it with operators and types that ONNX Runtime has",
) -> Iterator[None]:
    """Turns errors of ONNX Runtime into one-line `UserError`s, which end in what to do."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    kinds = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
    try:
        yield
    except kinds as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"ONNX Runtime cannot run the graph ({reason}); {fix}") from None


def check_export(float_file: Path, source: Source, clips: ClipSelection) -> None:
    """Compares the fp32 graph in ONNX Runtime with PyTorch on up to four clips.

    An external graph has no PyTorch network to compare with. It is only checked for a dynamic batch, and for giving logits.
    """
    runner = OnnxRunner(float_file)
    for batch in clips.first(4).batches("checking the graph", 4):
        if source.reference is None:
            _check_dynamic_batch(runner, source, batch.clips)
            _check_logits(runner(batch.clips), source)
            continue
        with torch.inference_mode():
            expected = source.reference(batch.clips)
        for what, ours, theirs in zip(Outputs._fields, runner.start(batch.clips)(), expected, strict=True):
            assert ours is not None and theirs is not None  # the networks of this package all have an embedding
            off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
            if not off < _EXPORT_TOLERANCE:
                raise UserError(
                    f"the ONNX graph of '{source.name}' differs from the network by {off:.2g} of the largest value of its "
                    f"{what}, and {_EXPORT_TOLERANCE} is allowed; take another version of torch or onnx, and tell us"
                )


def _check_dynamic_batch(runner: Runner, source: Source, clips: torch.Tensor) -> None:
    """Raises `UserError` unless a graph gives the same logits for a clip alone and in a batch.

    A graph exported without a dynamic batch can still declare one, so that only running it shows the difference.
    """
    try:
        together = runner(clips)
        off = float((runner(clips[:1]) - together[:1]).abs().max() / together.abs().max().clamp(min=1))
    except UserError as error:
        raise UserError(
            f"'{source.name}' does not run on {len(clips)} clips and on one: {error}; export it with a dynamic batch"
        ) from None
    if together.shape != (len(clips), len(source.labels)) or not off < 10 * _EXPORT_TOLERANCE:
        raise UserError(
            f"'{source.name}' gives logits {tuple(together.shape)} for {len(clips)} clips, and the logits of the first "
            f"differ by {off:.2g} when it runs alone; export it with a dynamic batch, and in evaluation mode"
        )


def _check_logits(given: torch.Tensor, source: Source) -> None:
    """Raises `UserError` if what a graph gives are probabilities, from an activation inside it that was not recognized."""
    if len(given) > 1 and bool((given >= 0).all()) and bool(((given.sum(1) - 1).abs() < 1e-4).all()):
        raise UserError(
            f"'{source.name}' gives values that sum to 1 for every clip, and so probabilities instead of logits; export it "
            "without its last activation"
        )


def verify(runner: Runner, model: Callable[[torch.Tensor], Outputs], batches: Iterable[ClipBatch]) -> Verification:
    """Runs an engine and the fp32 model on the same clips, and compares their outputs.

    Args:
        runner: the engine.
        model: the fp32 network on the CPU, from uint8 clips (N, T, S, S, 3) to outputs.
        batches: clips on the CPU, with labels where they are known.

    Raises:
        UserError: no clip could be read.
    """
    ours, theirs, labels, cosines = [], [], [], []
    finite = True
    with torch.inference_mode():
        for batch in batches:
            if batch.requests:
                found, expected = runner.start(batch.clips)(), model(batch.clips)
                ours.append(found.logits)
                theirs.append(expected.logits)
                labels.append(batch.labels)
                finite = finite and all(bool(part.isfinite().all()) for part in found if part is not None)
                if found.embedding is not None and expected.embedding is not None:
                    cosines.append(cosine_similarity(found.embedding.double(), expected.embedding.double()))
    if not ours:
        raise UserError(
            "none of the clips for the comparison could be read; see the warnings above, or give other data"
        )
    engine, reference, label = torch.cat(ours), torch.cat(theirs), torch.cat(labels)
    known = label != NO_LABEL
    difference = (engine.softmax(1) - reference.softmax(1)).abs()
    return Verification(
        clips=len(label),
        agreement=_percent(engine.argmax(1) == reference.argmax(1)),
        top1_model=_percent((reference.argmax(1) == label)[known]) if known.any() else None,
        top1_engine=_percent((engine.argmax(1) == label)[known]) if known.any() else None,
        largest_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        embedding_similarity=torch.cat(cosines).mean().item() if cosines else None,
        finite=finite,
    )


def _percent(hits: torch.Tensor) -> float:
    return 100 * hits.double().mean().item()
