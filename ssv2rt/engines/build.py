"""Builds an engine bundle from a run or an external ONNX file.

The steps are ONNX export, conversion to the precision of the engine, the backend's build, and verification against the
fp32 network.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ssv2rt.core.atomic_files import (
    atomic_folder,
    remove_partial_files,
    remove_tree,
    replace_folder,
    scratch_folder,
    write_json,
)
from ssv2rt.core.errors import UserError, os_errors_as_user_errors
from ssv2rt.core.locks import exclusive
from ssv2rt.core.recipes import EngineRecipe
from ssv2rt.core.run_folders import Run
from ssv2rt.dataset.classes import for_classes
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.engines.backends.registry import NAMES, backend
from ssv2rt.engines.base import Backend, BuiltEngine, Graph, Outputs, Runner
from ssv2rt.engines.bundle import FAILED, INFO, Bundle, BundleInfo, bundle_name, open_bundle, sha256
from ssv2rt.engines.calibration import ChosenClips, ClipSelection, select_clips
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.precision import CALIBRATED_PRECISIONS, write_graph, write_in_precision
from ssv2rt.engines.source import Source, source_of_run
from ssv2rt.engines.throughput import clips_per_second, slower_than_fp16_warning
from ssv2rt.engines.verify import OnnxRunner, Verification, check_export, verify

logger = logging.getLogger(__name__)


ONNX_FILE, FP32_ONNX_FILE = "model.onnx", "float.onnx"


def build_engine(
    run: Run, recipe: EngineRecipe, backend_name: str, manifest: Manifest, *, debug: Path | None = None
) -> tuple[Bundle, list[str]]:
    """Builds, verifies and installs an engine of a run's best checkpoint. See `build_engine_from_source`.

    Raises:
        UserError: there is no checkpoint, the data does not fit, or the backend refuses.
    """
    return build_engine_from_source(source_of_run(run), run.engines, recipe, backend_name, manifest, debug=debug)


def build_engine_from_source(
    source: Source,
    folder: Path,
    recipe: EngineRecipe,
    backend_name: str,
    manifest: Manifest | ChosenClips,
    *,
    debug: Path | None = None,
    options: Sequence[str] = (),
) -> tuple[Bundle, list[str]]:
    """Builds, verifies and installs an engine.

    Args:
        source: the network.
        folder: folder of the bundles; this one is written to a subfolder.
        recipe: precision, batch range, calibration and gate.
        backend_name: one of `registry.NAMES`.
        manifest: the data set, whose training clips are used for calibration and validation clips for verification; or
            chosen clips.
        debug: folder for a layer-by-layer comparison with the fp32 graph; None for no comparison.
        options: further command-line options to repeat in the bundle's rebuild command. The command already contains
            network, precision, backend and targets.

    Returns:
        The bundle in `folder/NAME`, see `bundle_name`, and an empty list; or, if the engine fails the gate, the bundle in
        `folder/NAME.failed` and the reasons.

    Raises:
        UserError: the data does not fit, the backend refuses, another process is building this engine, or `folder` cannot
            be written. What was there before stays.
    """
    engine_backend = backend(backend_name)
    if reason := engine_backend.cannot_build_reason():
        raise UserError(f"cannot build with {backend_name}: {reason}")
    precision = recipe.engine.precision
    if precision not in engine_backend.PRECISIONS:
        others = ", ".join(name for name in NAMES if precision in backend(name).PRECISIONS)
        raise UserError(
            f"{backend_name} builds {', '.join(engine_backend.PRECISIONS)}, not {precision}; for that take {others}"
        )
    if isinstance(manifest, Manifest):
        manifest = for_classes(manifest, source.labels, f"'{source.name}'")
    name = bundle_name(precision, backend_name, engine_backend.target_of(recipe.engine))
    final, failed = folder / name, folder / (name + FAILED)
    with exclusive(final, "building"), os_errors_as_user_errors(f"cannot build an engine in '{folder}'"):
        for path in (final, failed):
            remove_partial_files(path, older_than=-1)  # left by killed builds: the lock excludes live ones
        with scratch_folder(final) as scratch:
            float_file, graph_file = scratch / FP32_ONNX_FILE, scratch / ONNX_FILE
            source.export_of(engine_backend)(float_file)
            clips = select_clips(source, manifest, "validation", recipe.gate.clips, recipe.calibration.seed)
            check_export(float_file, source, clips)
            calibration = write_graph(float_file, graph_file, source, recipe, engine_backend, manifest)
            logger.info(f"building the {precision} engine with {backend_name} {engine_backend.version()}")
            built = engine_backend.build(Graph(graph_file, source.model), recipe.engine)
            info = make_bundle_info(scratch, source, recipe, backend_name, engine_backend, built, calibration, options)
            if debug:
                _write_layer_comparison(float_file, graph_file, clips, debug)
            verification, by = _verify_engine(Bundle(scratch, info), engine_backend, source, float_file, clips)
            failures = verification.failures(recipe.gate)
            notes = verification.notes(recipe.gate)
            for note in notes:
                logger.warning(note)
            figures: dict[str, Any] = {
                "by": by,
                "reference": "PyTorch" if source.reference else "ONNX Runtime",
                "clips_from": clips.clips_from,
                "notes": notes,
                **verification.as_dict(),
                "gate": recipe.gate.model_dump(),
                "failures": failures,
            }
            if precision in CALIBRATED_PRECISIONS and by == backend_name:
                figures |= _throughput_against_fp16(
                    Bundle(scratch, info), folder, source, recipe, engine_backend, float_file
                )
            float_file.unlink()
            info = info.model_copy(update={"verification": figures})
            write_json(scratch / INFO, info.model_dump(mode="json"))
            replace_folder(scratch, failed if failures else final)
            if not failures:
                remove_tree(failed)  # left by an earlier build
    return Bundle(failed if failures else final, info), failures


def _verify_engine(
    bundle: Bundle, engine_backend: Backend, source: Source, float_file: Path, clips: ClipSelection
) -> tuple[Verification, str]:
    """Verifies an engine against the fp32 network, and tells which program ran the engine.

    An engine that cannot run here is replaced by its ONNX graph, run by ONNX Runtime. The reference is PyTorch, or ONNX
    Runtime if the network is only known as an ONNX graph.
    """
    runner: Runner
    if reason := engine_backend.unavailable_reason() or engine_backend.incompatible_reason(bundle.info):
        logger.warning(f"the engine cannot run here ({reason}); comparing its graph, run by ONNX Runtime")
        if bundle.info.precision == "bf16":
            raise UserError(
                "ONNX Runtime computes no bf16 on a CPU, so this engine cannot be compared here; take --fp16"
            )
        runner, by = OnnxRunner(bundle.onnx_file), "onnxruntime"
    else:
        runner, by = engine_backend.load(bundle), bundle.info.backend
    reference = source.reference or _blocking(OnnxRunner(float_file))
    batches = clips.batches("comparing with the fp32 network", min(8, bundle.info.batch.max))
    return verify(runner, reference, batches), by


def _blocking(runner: Runner) -> Callable[[torch.Tensor], Outputs]:
    return lambda clips: runner.start(clips)()


def _write_layer_comparison(float_file: Path, graph_file: Path, clips: ClipSelection, folder: Path) -> None:
    from ssv2rt.engines.layer_diff import compare_layers
    from ssv2rt.engines.layer_diff_table import show_worst, write_layers

    batches = (batch.clips.numpy() for batch in clips.first(16).batches("comparing layers", 4))
    layers = compare_layers(float_file, graph_file, batches)
    with atomic_folder(folder) as temporary:
        write_layers(layers, temporary)
    show_worst(layers)


def _throughput_against_fp16(
    bundle: Bundle, folder: Path, source: Source, recipe: EngineRecipe, engine_backend: Backend, float_file: Path
) -> dict[str, float]:
    """Measures clips per second of a quantized engine and of the same network in fp16, and warns if fp16 is as fast.

    Args:
        bundle: the quantized engine, which must be able to run here.
        folder: folder of the run's bundles. An fp16 engine there is reused if it matches; else a temporary one is built.
    """
    info = bundle.info
    names = (bundle_name("fp16", info.backend, info.target), "fp16")  # older runs have the second
    half = next((half for name in names if (half := _matching_fp16_bundle(folder / name, info))), None)
    with scratch_folder(folder / info.precision) as place:
        if half is None:
            logger.info(f"building the fp16 engine, too, to see whether {info.precision} is faster")
            settings = recipe.engine.model_copy(update={"precision": "fp16"})
            write_in_precision(float_file, place / ONNX_FILE, "fp16", engine_backend)
            built = engine_backend.build(Graph(place / ONNX_FILE, source.model), settings)
            fp16 = recipe.model_copy(update={"engine": settings})
            half = Bundle(place, make_bundle_info(place, source, fp16, info.backend, engine_backend, built, None))
        shape = (info.batch.best, info.clip.frames, info.clip.size, info.clip.size, 3)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        if info.on_gpu:
            noise = noise.cuda()
        rates = clips_per_second(
            {info.precision: engine_backend.load(bundle), "fp16": engine_backend.load(half)}, noise
        )
    if slow := slower_than_fp16_warning(info.precision, rates):
        logger.warning(slow)
    return {"clips_per_second": rates[info.precision], "clips_per_second_fp16": rates["fp16"]}


def _matching_fp16_bundle(path: Path, info: BundleInfo) -> Bundle | None:
    """The fp16 bundle in a folder, if it differs from `info` in its precision only; else None."""
    try:
        found = open_bundle(path)
    except UserError:
        return None
    same = ("backend", "backend_version", "target", "weights_sha256", "batch", "clip", "labels")
    settings = ("hint", "threads", "cuda_graph", "version_compatible")
    alike = all(getattr(found.info, name) == getattr(info, name) for name in same)
    alike = alike and all(found.info.settings.get(name) == info.settings.get(name) for name in settings)
    return found if alike and info.weights_sha256 else None


def make_bundle_info(
    folder: Path,
    source: Source,
    recipe: EngineRecipe,
    backend_name: str,
    engine_backend: Backend,
    built: BuiltEngine,
    calibration: dict[str, Any] | None,
    options: Sequence[str] = (),
) -> BundleInfo:
    """The content of `bundle.json` for an engine whose files are in `folder`, without verification results."""
    clip, engine = source.clip, recipe.engine
    rebuild = [f"--{engine.precision}", "--backend", backend_name]
    for target in engine.targets:
        rebuild += ["--target", target]
    return BundleInfo(
        backend=backend_name,
        backend_version=engine_backend.version(),
        precision=engine.precision,
        target=engine_backend.target_of(engine),
        model=source.name,
        input=INPUT,
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=engine.batch,
        clip=clip,
        labels=source.labels,
        embedding=source.embedding,
        weights_sha256=source.sha256,
        files={name: sha256(folder / name) for name in (ONNX_FILE, built.file, *built.more_files)},
        onnx_file=ONNX_FILE,
        engine_file=built.file,
        settings=built.settings,
        calibration=calibration,
        rebuild=f"{source.command} {shlex.join([*rebuild, *options])}",
        imported=dict(source.imported) if source.imported else None,
    )
