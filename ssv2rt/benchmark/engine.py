"""Benchmark of engines, compared with PyTorch, ONNX Runtime, and direct calls of the engine's backend.

On a GPU, only what runs on the GPU is measured.
"""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssv2rt.benchmark.matrix_product import MATMUL, MatrixProduct
from ssv2rt.benchmark.rounds import Workload, describe_machine, run_rounds, synchronized_time
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError, one_line
from ssv2rt.core.hardware import choose_device, native_bf16, versions
from ssv2rt.core.recipes import BatchProfile, Calibration, Clip, Engine, EngineRecipe, Model
from ssv2rt.engines.backends.openvino import call_openvino_directly
from ssv2rt.engines.backends.registry import NAMES, backend, load_runner
from ssv2rt.engines.base import Backend, Graph
from ssv2rt.engines.build import FP32_ONNX_FILE, ONNX_FILE, make_bundle_info
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT, OUTPUT
from ssv2rt.engines.inspect import list_layers, totals
from ssv2rt.engines.onnx_files import read_graph
from ssv2rt.engines.precision import CALIBRATED_PRECISIONS, write_in_precision
from ssv2rt.engines.quantization import quantize
from ssv2rt.engines.source import Source, source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.cost import count_macs
from ssv2rt.models.registry import build_model
from ssv2rt.training.determinism import set_deterministic

logger = logging.getLogger(__name__)


EAGER = "PyTorch, fp32, contiguous"
DIRECT_CALL = ", by hand"
ON_CPU = "runs on the CPU only; on a machine with a GPU, only the GPU is measured"


def benchmark_engine(
    model: Model,
    clip: Clip,
    *,
    batch: int,
    threads: int,
    rounds: int,
    compiled: bool = True,
    precisions: Sequence[str] = (),
) -> dict[str, Any]:
    """Measures a network with random weights in clips per second, on a batch of random clips in memory.

    Args:
        model: the network.
        clip: shape of its clips.
        batch: batch size; each workload computes one batch in a round.
        threads: for each workload; 0 for one per core.
        rounds: number of timed rounds.
        compiled: whether to measure torch.compile and AOTInductor too, which take a minute to compile.
        precisions: of engines; by default all that a backend can build.
    """
    threads = threads or cores()
    device = choose_device()
    set_deterministic(False)
    torch.manual_seed(0)
    network = build_model(model, 174).eval()
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8).to(device)
    absent: dict[str, str] = {}
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            runs |= _pytorch(network, clips, device, compiled)
            source = source_of_model(network, "benchmark", tuple(str(number) for number in range(174)), clip)
            runs |= _engines(source, clips, Path(folder), precisions, threads, absent, compiled)
            logits_of = _first_logits(runs, absent)
            workloads = {name: _engine_workload(runs[name], device) for name in logits_of}
            products = {precision: MatrixProduct(device, precision) for precision in ("int8", "bf16")}
            workloads |= {f"{MATMUL}, {precision}": product.turn for precision, product in products.items()}
            rates = run_rounds(workloads, units=batch, rounds=rounds)
            graphs = {name: onnx_graph_of(source, "fp32", Path(folder), backend(name)) for name in NAMES}
            graphs["ONNX Runtime"] = onnx_graph_of(source, "fp32", Path(folder))
            of_file = {file: _gmacs(file) for file in set(graphs.values())}
            gmacs = {name: of_file[file] for name, file in graphs.items()}
    finally:
        torch.set_num_threads(before)
    logit_range = logits_of[EAGER].max() - logits_of[EAGER].min()
    eager = rates[EAGER].median
    peaks = {
        precision: rates.pop(f"{MATMUL}, {precision}").high / batch * product.operations
        for precision, product in products.items()
    }
    direct = {
        name: rate
        for name, rate in rates.items()
        if name.removesuffix(DIRECT_CALL) in rates and name.endswith(DIRECT_CALL)
    }
    return {
        "model": model.name,
        "clip": f"{clip.frames} x {clip.size} x {clip.size}",
        "batch": batch,
        "threads": threads,
        "device": str(device),
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "times_eager": {name: rate.median / eager for name, rate in rates.items()},
        "largest_difference": {
            name: float((logits - logits_of[EAGER]).abs().max() / logit_range) for name, logits in logits_of.items()
        },
        "share_of_by_hand": {
            name.removesuffix(DIRECT_CALL): rates[name.removesuffix(DIRECT_CALL)].median / rate.median
            for name, rate in direct.items()
        },
        "gmacs_per_clip": count_macs(network, frames=clip.frames, size=clip.size) / 1e9,
        "gmacs_per_clip_in_engines": gmacs,  # more where temporal shifts become convolutions
        "matrix_product_gops": {precision: peak / 1e9 for precision, peak in peaks.items()},
        "share_of_matrix_product": {
            name: 2e9 * gmacs[program] * rate.median / peaks[precision]
            for name, rate in rates.items()
            for program, _, precision in [name.rpartition(", ")]
            if precision in peaks and program in gmacs
        },
        "absent": absent,
        "machine": describe_machine(),
        "versions": versions(),
    }


def _pytorch(
    model: ClipModel, clips: torch.Tensor, device: torch.device, compiled: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    eager = copy.deepcopy(model).to(device)
    floats = eager.normalise(clips).contiguous()
    fast = copy.deepcopy(model).channels_last().to(device)
    dtype = torch.bfloat16 if native_bf16(device) or device.type == "cpu" else torch.float16

    def in_autocast(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.autocast(device.type, dtype):
                return network(clips)

        return run

    found: dict[str, Callable[[], torch.Tensor]] = {
        EAGER: lambda: eager.head(eager.backbone(floats)),
        "PyTorch, bf16, channels-last": in_autocast(fast),
    }
    if compiled:
        logger.info("compiling with torch.compile")
        found["torch.compile, bf16, channels-last"] = in_autocast(torch.compile(fast, dynamic=False))
    return found


def _engines(
    source: Source,
    clips: torch.Tensor,
    folder: Path,
    precisions: Sequence[str],
    threads: int,
    absent: dict[str, str],
    compiled: bool,
) -> dict[str, Callable[[], torch.Tensor]]:
    found: dict[str, Callable[[], torch.Tensor]] = {}
    if clips.is_cuda:
        absent["ONNX Runtime"] = ON_CPU
    else:
        for precision in ("fp32", "int8"):
            found[f"ONNX Runtime, {precision}"] = _onnxruntime(onnx_graph_of(source, precision, folder), clips, threads)
    for name in NAMES:
        program = backend(name)
        reason = program.cannot_build_reason() or program.unavailable_reason()
        if clips.is_cuda and name == "openvino":
            reason = ON_CPU
        elif name == "aotinductor" and not compiled:
            reason = "excluded by the options"
        if reason:
            absent[name] = reason
            continue
        for precision in program.PRECISIONS:
            title = f"{name}, {precision}"
            if precisions and precision not in precisions:
                absent[title] = "excluded by the options"
                continue
            try:
                bundle = build_without_checks(source, name, precision, folder, batch=len(clips), threads=threads)
                runner = load_runner(bundle)
            except UserError as error:
                absent[title] = one_line(error)
                continue
            found[title] = lambda runner=runner: runner(clips)  # type: ignore[misc]
            if name == "openvino" and precision == "int8":
                found[f"{title}{DIRECT_CALL}"] = call_openvino_directly(bundle, clips)
    return found


def onnx_graph_of(source: Source, precision: str, folder: Path, program: Backend | None = None) -> Path:
    """The ONNX graph for engines of a precision: fp32, or quantized for int8 and fp8. Each is made once per folder.

    Args:
        source: the network.
        precision: of the engine.
        folder: where the graphs are.
        program: the backend that the graph is for; None for ONNX Runtime.
    """
    export = source.export_of(program) if program else source.export
    if export is not source.export:
        folder /= "with shifts"
        folder.mkdir(exist_ok=True)
    floats, integers = folder / FP32_ONNX_FILE, folder / "int8.onnx"
    if not floats.exists():
        export(floats)
    if precision not in CALIBRATED_PRECISIONS:
        return floats
    if not integers.exists():
        logger.info("calibrating on random clips, since only speed is measured")
        clip = source.clip
        noise = np.random.default_rng(0).integers(0, 256, (2, clip.frames, clip.size, clip.size, 3), np.uint8)
        quantize(floats, integers, [noise], method="minmax")
    return integers


def build_without_checks(
    source: Source, name: str, precision: str, folder: Path, *, batch: int, threads: int
) -> Bundle:
    """Builds an engine without comparing its outputs with the network, in its own folder in `folder`, beside the graphs."""
    logger.info(f"building {name}, {precision}")
    place, program = folder / f"{name}, {precision}", backend(name)
    place.mkdir()
    settings = Engine.model_validate(
        {"precision": precision, "threads": threads, "batch": BatchProfile(min=1, best=batch, max=batch)}
    )
    recipe = EngineRecipe(engine=settings, calibration=Calibration())
    write_in_precision(onnx_graph_of(source, precision, folder, program), place / ONNX_FILE, precision, program)
    built = program.build(Graph(place / ONNX_FILE, source.model), settings)
    return Bundle(place, make_bundle_info(place, source, recipe, name, program, built, None))


def _gmacs(file: Path) -> float:
    return float(totals(list_layers(read_graph(file)))["gmacs"])


def _onnxruntime(file: Path, clips: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    array: np.ndarray = clips.numpy()
    return lambda: torch.from_numpy(session.run([OUTPUT], {INPUT: array})[0])


def _first_logits(runs: dict[str, Callable[[], torch.Tensor]], absent: dict[str, str]) -> dict[str, torch.Tensor]:
    """The logits of each workload. One that fails, such as in compilation, is moved to `absent`, and the others go on."""
    found: dict[str, torch.Tensor] = {}
    for name, run in runs.items():
        try:
            found[name] = run().float().cpu()
        except (RuntimeError, UserError) as error:
            if name == EAGER:
                raise
            absent[name] = one_line(error)
    return found


def _engine_workload(run: Callable[[], torch.Tensor], device: torch.device) -> Workload:
    def work() -> None:
        run()
        synchronized_time(device)

    return work
