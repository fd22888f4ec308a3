"""The networks that engines are built from, and those of runs. `onnx_source` has those of ONNX files from elsewhere.

Letters: N clips, T frames, S size, D features, K classes.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from ssv2rt.core.recipes import Clip, Data
from ssv2rt.core.run_folders import Run
from ssv2rt.engines.base import Backend, Outputs
from ssv2rt.engines.bundle import ImportFacts, sha256
from ssv2rt.engines.export import EngineModel, export_onnx
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.factorized import shifted_kernels
from ssv2rt.models.weights import load_trained

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A network with everything that is needed to build an engine from it."""

    name: str
    labels: tuple[str, ...]
    clip: Clip
    data: Data
    """How clips are read."""
    sha256: str
    """SHA-256 of the weights file or ONNX file; empty for a network in memory."""
    embedding: int
    """D; 0 if the graph has no embedding output."""
    export: Callable[[Path], None]
    """Writes the fp32 graph, with temporal shifts folded into convolutions."""
    reference: Callable[[torch.Tensor], Outputs] | None
    """The network in PyTorch, from uint8 (N, T, S, S, 3) to its outputs; None if it is only known as an ONNX graph."""
    model: nn.Module | None
    """The same as `Graph.model`."""
    command: str
    """The `ssv2rt build-engine` command that selects this source, without further options."""
    export_with_shifts: Callable[[Path], None] | None = None
    """Writes the fp32 graph with temporal shifts as they are; None if there are none."""
    imported: ImportFacts | None = None
    """For a network from an ONNX file: what was given and what was assumed about it."""

    def export_of(self, program: Backend) -> Callable[[Path], None]:
        """Writes the fp32 graph in the form that a backend runs the fastest."""
        return (self.export_with_shifts if program.RUNS_SHIFTS else None) or self.export


def source_of_run(run: Run) -> Source:
    """The best checkpoint of a run.

    Raises:
        UserError: the run has no such checkpoint, or it cannot be read.
    """
    trained = load_trained(run)
    recipe = trained.recipe
    return replace(
        source_of_model(trained.model, recipe.model.name, trained.labels, recipe.clip),
        data=recipe.data,
        sha256=sha256(trained.path),
        command=shlex.join(["ssv2rt", "build-engine", run.name]),
    )


def source_of_model(model: ClipModel, name: str, labels: tuple[str, ...], clip: Clip) -> Source:
    """A network in memory, in evaluation mode."""

    def export(path: Path, fold_shifts: bool = True) -> None:
        logger.info(f"exporting {name} to ONNX")
        export_onnx(model, path, clip=clip, labels=labels, fold_shifts=fold_shifts)

    def reference(clips: torch.Tensor) -> Outputs:
        embedding = model.features(clips)
        return Outputs(model.head(embedding), embedding)

    return Source(
        name=name,
        labels=labels,
        clip=clip,
        data=Data(),
        sha256="",
        embedding=model.head.in_features,
        export=export,
        reference=reference,
        model=EngineModel(model).eval(),
        command="ssv2rt build-engine",
        export_with_shifts=partial(export, fold_shifts=False) if shifted_kernels(model) else None,
    )
