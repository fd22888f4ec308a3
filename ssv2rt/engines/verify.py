"""An engine beside the PyTorch model it was made from, on real clips."""

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
from ssv2rt.engines.export import EMBEDDING, INPUT, OUTPUT
from ssv2rt.pipelines.loader import ClipBatch


@dataclass(frozen=True)
class Verification:
    """How an engine compares with the fp32 PyTorch model on the same clips. Shares in percent."""

    clips: int
    agreement: float
    """Clips on which both name the same class first."""
    top1_model: float
    top1_engine: float
    largest_difference: float
    """Of two probabilities of the same class."""
    mean_difference: float
    embedding_similarity: float | None
    """Mean cosine of the angle between the two embeddings; None where the graph gives none."""
    finite: bool
    """Whether all that the engine gives is."""

    @property
    def top1_drop(self) -> float:
        """Points of accuracy that the engine loses; negative if it gains."""
        return self.top1_model - self.top1_engine

    def failures(self, gate: Gate) -> list[str]:
        """What the gate does not accept, one sentence each."""
        found = []
        if not self.finite:
            found.append("what the engine gives is not all finite")
        if self.agreement < gate.min_agreement:
            found.append(
                f"it agrees on {self.agreement:.2f}% of the clips, and gate.min_agreement = {gate.min_agreement:g}"
            )
        if self.top1_drop > gate.max_top1_drop:
            found.append(f"top-1 falls by {self.top1_drop:.2f} points, and gate.max_top1_drop = {gate.max_top1_drop:g}")
        return found

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "top1_drop": self.top1_drop}


class OnnxRunner(Runner):
    """The graph itself, run by ONNX Runtime on the CPU.

    Args:
        onnx_file: the graph.
        optimise: whether by its faster kernels, which are wrong for Q/DQ graphs with fp16 scales.

    Raises:
        UserError: ONNX Runtime cannot run it; from `start`, too.
    """

    def __init__(self, onnx_file: Path, *, optimise: bool = False) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        if not optimise:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # what goes wrong is raised
        with _told():
            self._session = onnxruntime.InferenceSession(onnx_file, options, providers=["CPUExecutionProvider"])
        given = {value.name for value in self._session.get_outputs()}
        self._names = [name for name in (OUTPUT, EMBEDDING) if name in given]

    def start(self, clips: torch.Tensor) -> Callable[[], Outputs]:
        with _told():
            logits, *more = map(torch.from_numpy, self._session.run(self._names, {INPUT: clips.numpy()}))
        outputs = Outputs(logits, more[0] if more else None)
        return lambda: outputs


@contextmanager
def _told() -> Iterator[None]:
    """Errors of ONNX Runtime as one line."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    kinds = (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.NotImplemented, errors.RuntimeException)
    try:
        yield
    except kinds as error:
        raise UserError(f"ONNX Runtime cannot run the graph ({' '.join(str(error).split())[:200]})") from None


def verify(runner: Runner, model: Callable[[torch.Tensor], Outputs], batches: Iterable[ClipBatch]) -> Verification:
    """Runs both over the clips.

    Args:
        runner: the engine.
        model: the fp32 network, on the CPU, of clips uint8 (N, T, S, S, 3).
        batches: labelled clips, on the CPU.
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
    engine, reference, label = torch.cat(ours), torch.cat(theirs), torch.cat(labels)
    difference = (engine.softmax(1) - reference.softmax(1)).abs()
    return Verification(
        clips=len(label),
        agreement=_percent(engine.argmax(1) == reference.argmax(1)),
        top1_model=_percent(reference.argmax(1) == label),
        top1_engine=_percent(engine.argmax(1) == label),
        largest_difference=difference.max().item(),
        mean_difference=difference.mean().item(),
        embedding_similarity=torch.cat(cosines).mean().item() if cosines else None,
        finite=finite,
    )


def _percent(hits: torch.Tensor) -> float:
    return 100 * hits.double().mean().item()
