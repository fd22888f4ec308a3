"""From a run to an engine bundle: export, precision, backend, comparison with PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch

from ssv2rt.console import Progress, say
from ssv2rt.dataset.manifest import Manifest, Split
from ssv2rt.engines.backends import Backend, Built, Graph, Runner, backend
from ssv2rt.engines.bundle import FAILED, INFO, Bundle, BundleInfo, sha256
from ssv2rt.engines.export import INPUT, EngineModel, export_onnx
from ssv2rt.engines.precision import halve, label_precision, quantise
from ssv2rt.engines.verify import OnnxRunner, Verification, verify
from ssv2rt.errors import UserError
from ssv2rt.models.weights import Trained, load_trained
from ssv2rt.pipelines.epochs import evaluation_batches
from ssv2rt.pipelines.loader import ClipBatch, ClipLoader
from ssv2rt.pipelines.source import clip_rng
from ssv2rt.recipes import EngineRecipe
from ssv2rt.runs import Run, put_in_place, scratch_folder, write_json

GRAPH = "model.onnx"


def build_engine(run: Run, recipe: EngineRecipe, backend_name: str, manifest: Manifest) -> tuple[Bundle, list[str]]:
    """Builds, compares and installs an engine of a run's best checkpoint.

    Args:
        run: trained.
        recipe: precision, batch range, calibration and gate.
        backend_name: one of `backends.NAMES`.
        manifest: the run's data, for calibration and comparison.

    Returns:
        The bundle in `runs/NAME/engines/PRECISION`, and no complaints; or, if it fails the gate, the bundle in
        `engines/PRECISION.failed`, and what is wrong with it.

    Raises:
        UserError: there is no checkpoint, the data does not fit, or the backend refuses.
    """
    program = backend(backend_name)
    if reason := program.cannot_build():
        raise UserError(f"cannot build with {backend_name}: {reason}")
    trained = load_trained(run)
    manifest.check_classes(trained.labels, f"run '{run.path}'")
    precision = recipe.engine.precision
    with scratch_folder(run.engines) as folder:
        calibration = _write_graph(folder / GRAPH, trained, recipe, program, manifest)
        say(f"building the {precision} engine with {backend_name} {program.version()}")
        built = program.build(Graph(folder / GRAPH, EngineModel(trained.model).eval()), recipe.engine)
        info = _describe(folder, run, trained, recipe, backend_name, built, calibration)
        verification, by = _compare(Bundle(folder, info), program, trained, recipe, manifest)
        info = info.model_copy(update={"verification": {"by": by, **verification.as_dict()}})
        write_json(folder / INFO, info.model_dump(mode="json"))
        failures = verification.failures(recipe.gate)
        final = run.engines / (precision + FAILED if failures else precision)
        put_in_place(folder, final)
    return Bundle(final, info), failures


def spread_over_classes(split: Split, count: int, seed: int) -> np.ndarray:
    """int64 (count,) or fewer: rows of a split, in random order, with as even a share of every class as there is."""
    order = clip_rng(seed, 0, "calibration").permutation(len(split))
    turn = np.zeros(len(split), np.int64)  # how many clips of the same class come before
    for label in np.unique(split.classes):
        mine = order[split.classes[order] == label]
        turn[mine] = np.arange(len(mine))
    return order[np.argsort(turn[order], kind="stable")][:count]


def _write_graph(
    path: Path, trained: Trained, recipe: EngineRecipe, program: Backend, manifest: Manifest
) -> dict[str, object] | None:
    """Writes the graph in its precision. Returns what calibration used."""
    precision = recipe.engine.precision
    say(f"exporting {trained.recipe.model.name} of epoch {trained.epoch} to ONNX")
    export_onnx(trained.model, path, clip=trained.recipe.clip, labels=trained.labels)
    calibration = None
    if precision == "int8":
        settings = recipe.calibration
        split = manifest.split("train")
        rows = spread_over_classes(split, settings.clips, settings.seed)
        with Progress("calibrating", len(rows)) as progress:
            quantise(path, path, _calibration_batches(trained, split, rows, progress), method=settings.method)
        calibration = {**settings.model_dump(), "clips": len(rows)}
    model = onnx.load(path)
    if precision == "fp16" or (precision == "int8" and program.WANTS_HALF):
        model = halve(model)
    onnx.save(label_precision(model, precision), path)
    return calibration


def _calibration_batches(trained: Trained, split: Split, rows: np.ndarray, progress: Progress) -> Iterator[np.ndarray]:
    for batch in _clips(trained, split, rows):
        if batch.requests:
            yield batch.clips.numpy()
        progress.add(len(batch.requests) + len(batch.bad))


def _clips(trained: Trained, split: Split, rows: np.ndarray, batch: int = 8) -> Iterator[ClipBatch]:
    clip = trained.recipe.clip.one_view()
    loader = ClipLoader(clip=clip, batch=batch, data=trained.recipe.data, device=torch.device("cpu"))
    return loader.batches(evaluation_batches(split, clip, batch=batch, rows=rows))


def _compare(
    bundle: Bundle, program: Backend, trained: Trained, recipe: EngineRecipe, manifest: Manifest
) -> tuple[Verification, str]:
    """Compares with PyTorch on validation clips. An engine that cannot run here is represented by its graph."""
    split = manifest.split("validation")
    rows = spread_over_classes(split, recipe.gate.clips, recipe.calibration.seed)
    runner: Runner
    if reason := program.missing():
        say(f"the engine cannot run here ({reason}); comparing its graph, run by ONNX Runtime")
        runner, by = OnnxRunner(bundle.onnx_file), "onnxruntime"
    else:
        runner, by = program.load(bundle), bundle.info.backend
    with Progress("comparing with PyTorch", len(rows)) as progress:

        def counted() -> Iterator[ClipBatch]:
            for batch in _clips(trained, split, rows, min(8, bundle.info.batch.max)):
                yield batch
                progress.add(len(batch.requests) + len(batch.bad))

        return verify(runner, trained.model, counted()), by


def _describe(
    folder: Path,
    run: Run,
    trained: Trained,
    recipe: EngineRecipe,
    backend_name: str,
    built: Built,
    calibration: dict[str, object] | None,
) -> BundleInfo:
    clip = trained.recipe.clip
    return BundleInfo(
        backend=backend_name,
        backend_version=backend(backend_name).version(),
        precision=recipe.engine.precision,
        target=built.target,
        model=trained.recipe.model.name,
        input=INPUT,
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=recipe.engine.batch,
        clip=clip,
        labels=trained.labels,
        weights_sha256=sha256(trained.path),
        files={name: sha256(folder / name) for name in (GRAPH, built.file, *built.more_files)},
        onnx_file=GRAPH,
        engine_file=built.file,
        settings=built.settings,
        calibration=calibration,
        rebuild=f"ssv2rt build-engine {run.name} --{recipe.engine.precision} --backend {backend_name}",
    )
