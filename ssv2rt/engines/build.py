"""From a run, or a graph made elsewhere, to an engine bundle: export, precision, backend, comparison with PyTorch."""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from ssv2rt.core.atomic_files import replace_folder, scratch_folder, write_json
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import EngineRecipe
from ssv2rt.core.run_folders import Run, cache_folder
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.engines.backends.registry import NAMES, backend
from ssv2rt.engines.base import Backend, Built, Graph, Outputs, Runner
from ssv2rt.engines.bundle import FAILED, INFO, Bundle, BundleInfo, open_bundle, sha256
from ssv2rt.engines.calibration import Clips, spread_over_classes
from ssv2rt.engines.export import INPUT
from ssv2rt.engines.half import label_precision, to_half
from ssv2rt.engines.quantization import quantise, to_fp8
from ssv2rt.engines.sensitivity import choose_blocks
from ssv2rt.engines.source import Source, source_of_run
from ssv2rt.engines.throughput import clips_per_second, not_faster
from ssv2rt.engines.verify import OnnxRunner, Verification, verify

logger = logging.getLogger(__name__)


GRAPH, FLOAT = "model.onnx", "float.onnx"
_EXACT = 1e-4
"""Difference of results that rounding may make."""
CALIBRATED = ("int8", "fp8")
"""Precisions with ranges that come from clips."""


def build_engine(
    run: Run, recipe: EngineRecipe, backend_name: str, manifest: Manifest, *, debug: Path | None = None
) -> tuple[Bundle, list[str]]:
    """Builds, compares and installs an engine of a run's best checkpoint; as `build_of`.

    Raises:
        UserError: there is no checkpoint, the data does not fit, or the backend refuses.
    """
    return build_of(source_of_run(run), run.engines, recipe, backend_name, manifest, debug=debug)


def build_of(
    source: Source,
    folder: Path,
    recipe: EngineRecipe,
    backend_name: str,
    manifest: Manifest,
    *,
    debug: Path | None = None,
    options: Sequence[str] = (),
) -> tuple[Bundle, list[str]]:
    """Builds, compares and installs an engine.

    Args:
        source: the network.
        folder: where bundles are put.
        recipe: precision, batch range, calibration and gate.
        backend_name: one of `backends.NAMES`.
        manifest: the network's data, for calibration (training clips) and comparison (validation clips).
        debug: where each layer is written down beside the fp32 graph's, if at all.
        options: of the command line, beside the network, precision, backend and targets, for the command that rebuilds it.

    Returns:
        The bundle in `folder/PRECISION`, and no complaints; or, if it fails the gate, the bundle in `folder/PRECISION.failed`,
        and what is wrong with it.

    Raises:
        UserError: the data does not fit, or the backend refuses.
    """
    program = backend(backend_name)
    if reason := program.cannot_build_reason():
        raise UserError(f"cannot build with {backend_name}: {reason}")
    precision = recipe.engine.precision
    if precision not in program.PRECISIONS:
        others = ", ".join(name for name in NAMES if precision in backend(name).PRECISIONS)
        raise UserError(
            f"{backend_name} builds {', '.join(program.PRECISIONS)}, not {precision}; for that take {others}"
        )
    manifest.check_classes(source.labels, f"'{source.name}'")
    with scratch_folder(folder) as scratch:
        float_file, graph_file = scratch / FLOAT, scratch / GRAPH
        source.export(float_file)
        clips = _clips(source, manifest, "validation", recipe.gate.clips, recipe.calibration.seed)
        _check_export(float_file, source, clips)
        calibration = _write_graph(float_file, graph_file, source, recipe, program, manifest)
        logger.info(f"building the {precision} engine with {backend_name} {program.version()}")
        built = program.build(Graph(graph_file, source.model), recipe.engine)
        info = describe(scratch, source, recipe, backend_name, program, built, calibration, options)
        if debug:
            _debug(float_file, graph_file, clips, debug)
        verification, by = _compare(Bundle(scratch, info), program, source, float_file, clips)
        failures = verification.failures(recipe.gate)
        figures = {"by": by, **verification.as_dict(), "gate": recipe.gate.model_dump(), "failures": failures}
        if precision in CALIBRATED and by == backend_name:
            figures |= _beside_fp16(Bundle(scratch, info), folder / "fp16", source, recipe, program, float_file)
        float_file.unlink()
        info = info.model_copy(update={"verification": figures})
        write_json(scratch / INFO, info.model_dump(mode="json"))
        final = folder / (precision + FAILED if failures else precision)
        replace_folder(scratch, final)
    if not failures:
        shutil.rmtree(folder / (precision + FAILED), ignore_errors=True)  # of an earlier time
    return Bundle(final, info), failures


def _write_graph(
    float_file: Path, path: Path, source: Source, recipe: EngineRecipe, program: Backend, manifest: Manifest
) -> dict[str, Any] | None:
    """Writes the graph in its precision. Returns what calibration used and found."""
    precision = recipe.engine.precision
    if precision not in CALIBRATED:
        in_precision(float_file, path, precision, program)
        return None
    calibration = _calibrate(float_file, path, source, recipe, manifest)
    in_precision(path, path, precision, program)
    return calibration


def in_precision(source: Path, target: Path, precision: str, program: Backend) -> None:
    """Writes the graph that a backend takes for a precision.

    Args:
        source: the fp32 graph, or for int8 and fp8 the quantised one.
        target: file to write.
        precision: of the engine.
        program: the backend. Some take bf16 as a setting, and do int8 best beside fp32.
    """
    model = onnx.load(source)
    if precision == "fp8":
        model = to_fp8(model)
    if precision == "fp16" or (program.WANTS_HALF and precision in ("bf16", *CALIBRATED)):
        model = to_half(model, bfloat=precision == "bf16")
    onnx.save(label_precision(model, precision), target)


def _calibrate(
    float_file: Path, path: Path, source: Source, recipe: EngineRecipe, manifest: Manifest
) -> dict[str, Any]:
    settings = recipe.calibration
    clips = _clips(source, manifest, "train", settings.clips, settings.seed)
    ranges = _place_of_ranges(float_file, recipe, clips)
    if ranges.is_file():
        logger.info("taking the ranges of an earlier calibration on the same clips")

    def to_int8(target: Path, keep: list[str]) -> None:
        quantise(
            float_file,
            target,
            (batch.clips.numpy() for batch in clips.batches("calibrating")),
            method=settings.method,
            ranges=ranges,
            keep=keep,
            stem=settings.stem,
            head=settings.head,
        )

    found: dict[str, Any] = {**settings.model_dump(), "clips": len(clips)}
    if settings.max_drop is None:
        to_int8(path, [])
        return found
    return found | choose_blocks(float_file, path, clips, to_int8, max_drop=settings.max_drop).as_dict()


def _check_export(float_file: Path, source: Source, clips: Clips) -> None:
    """Compares the fp32 graph, run by ONNX Runtime, with PyTorch on a few clips; one made elsewhere, with itself on one."""
    few = Clips(clips.split, clips.rows[:4], clips.clip, clips.data)
    runner = OnnxRunner(float_file)
    for batch in few.batches("checking the graph", 4):
        if source.reference is None:
            _check_batches(runner, source, batch.clips)
            continue
        with torch.inference_mode():
            expected = source.reference(batch.clips)
        for what, ours, theirs in zip(Outputs._fields, runner.start(batch.clips)(), expected, strict=True):
            assert ours is not None and theirs is not None  # a network of ours has an embedding
            off = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
            if not off < _EXACT:
                raise UserError(
                    f"the ONNX graph of '{source.name}' differs from the network by {off:.2g} of the largest value of its "
                    f"{what}, and {_EXACT} is allowed; take another version of torch or onnx, and tell us"
                )


def _check_batches(runner: Runner, source: Source, clips: torch.Tensor) -> None:
    """Whether a graph takes any number of clips: those of an exporter that was given no dynamic batch look as if they did."""
    try:
        together = runner(clips)
        off = float((runner(clips[:1]) - together[:1]).abs().max() / together.abs().max().clamp(min=1))
    except UserError as error:
        raise UserError(
            f"'{source.name}' does not run on {len(clips)} clips and on one: {error}; export it with a dynamic batch"
        ) from None
    if together.shape != (len(clips), len(source.labels)) or not off < 10 * _EXACT:
        raise UserError(
            f"'{source.name}' gives logits {tuple(together.shape)} for {len(clips)} clips, which for one differ by "
            f"{off:.2g} if it is alone; export it with a dynamic batch, and in evaluation mode"
        )


def _place_of_ranges(float_file: Path, recipe: EngineRecipe, clips: Clips) -> Path:
    """Where the ranges are kept that calibration of this graph on these clips finds.

    The graph tells the weights, and how its tensors are called. What else the settings say does not change a range.
    """
    import onnxruntime

    settings = recipe.calibration
    by = [onnxruntime.__version__, settings.method, settings.head]
    what = [sha256(float_file), clips.clip.model_dump_json(), *by, clips.names]
    key = hashlib.blake2b(json.dumps(what).encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return cache_folder() / "calibration" / f"{key}.json"


def _clips(source: Source, manifest: Manifest, split_name: str, count: int, seed: int) -> Clips:
    split = manifest.split(split_name)
    return Clips(split, spread_over_classes(split, count, seed), source.clip, source.data)


def _compare(
    bundle: Bundle, program: Backend, source: Source, float_file: Path, clips: Clips
) -> tuple[Verification, str]:
    """Compares with PyTorch. An engine that cannot run here is represented by its graph, run by ONNX Runtime; and so is
    the network itself where only its graph is known."""
    runner: Runner
    if reason := program.unavailable_reason() or program.incompatible_reason(bundle.info):
        logger.warning(f"the engine cannot run here ({reason}); comparing its graph, run by ONNX Runtime")
        if bundle.info.precision == "bf16":
            raise UserError(
                "ONNX Runtime computes no bf16 on a CPU, so this engine cannot be compared here; take --fp16"
            )
        runner, by = OnnxRunner(bundle.onnx_file), "onnxruntime"
    else:
        runner, by = program.load(bundle), bundle.info.backend
    reference = source.reference or _waited_for(OnnxRunner(float_file))
    batches = clips.batches("comparing with the fp32 network", min(8, bundle.info.batch.max))
    return verify(runner, reference, batches), by


def _waited_for(runner: Runner) -> Callable[[torch.Tensor], Outputs]:
    return lambda clips: runner.start(clips)()


def _debug(float_file: Path, graph_file: Path, clips: Clips, folder: Path) -> None:
    from ssv2rt.engines.layer_diff import compare_layers
    from ssv2rt.engines.layer_diff_table import show_worst, write_layers

    few = Clips(clips.split, clips.rows[:16], clips.clip, clips.data)
    batches = (batch.clips.numpy() for batch in few.batches("comparing layers", 4))
    layers = compare_layers(float_file, graph_file, batches)
    folder.mkdir(parents=True, exist_ok=True)
    write_layers(layers, folder)
    show_worst(layers)


def _beside_fp16(
    bundle: Bundle, earlier: Path, source: Source, recipe: EngineRecipe, program: Backend, float_file: Path
) -> dict[str, float]:
    """Clips per second of a quantised engine that runs here, and of the same network in fp16, which loses less.

    Args:
        earlier: where an fp16 engine may lie already. It is taken if it is one of the same network for the same batches.
    """
    info = bundle.info
    half = _alike(earlier, info)
    with scratch_folder(earlier.parent) as place:
        if half is None:
            logger.info(f"building the fp16 engine, too, to see whether {info.precision} is faster")
            settings = recipe.engine.model_copy(update={"precision": "fp16"})
            in_precision(float_file, place / GRAPH, "fp16", program)
            built = program.build(Graph(place / GRAPH, source.model), settings)
            fp16 = recipe.model_copy(update={"engine": settings})
            half = Bundle(place, describe(place, source, fp16, info.backend, program, built, None))
        shape = (info.batch.best, info.clip.frames, info.clip.size, info.clip.size, 3)
        noise = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        if info.target.startswith("sm"):
            noise = noise.cuda()
        rates = clips_per_second({info.precision: program.load(bundle), "fp16": program.load(half)}, noise)
    if slow := not_faster(info.precision, rates):
        logger.warning(slow)
    return {"clips_per_second": rates[info.precision], "clips_per_second_fp16": rates["fp16"]}


def _alike(path: Path, info: BundleInfo) -> Bundle | None:
    """The fp16 engine in a folder, if it differs from another engine in its precision only."""
    try:
        found = open_bundle(path)
    except UserError:
        return None
    same = ("backend", "backend_version", "target", "weights_sha256", "batch", "clip", "labels")
    settings = ("hint", "threads", "cuda_graph", "version_compatible")
    alike = all(getattr(found.info, name) == getattr(info, name) for name in same)
    alike = alike and all(found.info.settings.get(name) == info.settings.get(name) for name in settings)
    return found if alike and info.weights_sha256 else None


def describe(
    folder: Path,
    source: Source,
    recipe: EngineRecipe,
    backend_name: str,
    program: Backend,
    built: Built,
    calibration: dict[str, Any] | None,
    options: Sequence[str] = (),
) -> BundleInfo:
    """What `bundle.json` says of an engine whose files lie in a folder, before it is compared."""
    clip, engine = source.clip, recipe.engine
    rebuild = [f"--{engine.precision}", "--backend", backend_name]
    for target in engine.targets:
        rebuild += ["--target", target]
    return BundleInfo(
        backend=backend_name,
        backend_version=program.version(),
        precision=engine.precision,
        target=built.target,
        model=source.name,
        input=INPUT,
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=engine.batch,
        clip=clip,
        labels=source.labels,
        embedding=source.embedding,
        weights_sha256=source.sha256,
        files={name: sha256(folder / name) for name in (GRAPH, built.file, *built.more_files)},
        onnx_file=GRAPH,
        engine_file=built.file,
        settings=built.settings,
        calibration=calibration,
        rebuild=f"{source.command} {shlex.join([*rebuild, *options])}",
    )
