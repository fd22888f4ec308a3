"""How fast engines are, beside PyTorch, ONNX Runtime, and their own backend called by hand.

On a GPU only what runs there takes part.
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

from ssv2rt.benchmark.rounds import Contestant, machine, now, race
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, native_bf16, versions
from ssv2rt.core.recipes import BatchProfile, Calibration, Clip, Engine, EngineRecipe, Model
from ssv2rt.engines.backends.openvino import by_hand
from ssv2rt.engines.backends.registry import NAMES, backend, load_runner
from ssv2rt.engines.base import Graph
from ssv2rt.engines.build import CALIBRATED, FLOAT, GRAPH, describe, in_precision
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT, OUTPUT
from ssv2rt.engines.quantization import quantise
from ssv2rt.engines.source import Source, source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model
from ssv2rt.training.determinism import set_deterministic

logger = logging.getLogger(__name__)


EAGER = "PyTorch, fp32, contiguous"
BY_HAND = ", by hand"
ON_CPU = "runs on the CPU, and there is a GPU"


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
    """Clips per second of a network with random weights, on random clips that lie ready.

    Args:
        model: the network.
        clip: its clips.
        batch: clips in a batch, of which each contestant computes one in a turn.
        threads: for each contestant; 0 for one a core.
        rounds: timed ones.
        compiled: whether torch.compile and AOTInductor, which take a minute to compile, take part.
        precisions: of engines; all that a backend builds by default.
    """
    threads = threads or cores()
    device = choose_device()
    set_deterministic(False)
    torch.manual_seed(0)
    network = build_model(model, 174).eval()
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8).to(device)
    absent: dict[str, str] = {}
    answers: dict[str, Callable[[], torch.Tensor]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            answers |= _pytorch(network, clips, device, compiled)
            source = source_of_model(network, "benchmark", tuple(str(number) for number in range(174)), clip)
            answers |= _engines(source, clips, Path(folder), precisions, threads, absent, compiled)
            found = _first_answers(answers, absent)
            contestants = {name: _contestant(answers[name], device) for name in found}
            rates = race(contestants, units=batch, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    spread = found[EAGER].max() - found[EAGER].min()
    eager = rates[EAGER].median
    hand = {
        name: rate for name, rate in rates.items() if name.removesuffix(BY_HAND) in rates and name.endswith(BY_HAND)
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
            name: float((logits - found[EAGER]).abs().max() / spread) for name, logits in found.items()
        },
        "share_of_by_hand": {
            name.removesuffix(BY_HAND): rates[name.removesuffix(BY_HAND)].median / rate.median
            for name, rate in hand.items()
        },
        "absent": absent,
        "machine": machine(),
        "versions": versions(),
    }


def _pytorch(
    model: ClipModel, clips: torch.Tensor, device: torch.device, compiled: bool
) -> dict[str, Callable[[], torch.Tensor]]:
    eager = copy.deepcopy(model).to(device)
    floats = eager.normalise(clips).contiguous()
    fast = copy.deepcopy(model).channels_last().to(device)
    dtype = torch.bfloat16 if native_bf16(device) or device.type == "cpu" else torch.float16

    def half(network: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with torch.autocast(device.type, dtype):
                return network(clips)

        return run

    found: dict[str, Callable[[], torch.Tensor]] = {
        EAGER: lambda: eager.head(eager.backbone(floats)),
        "PyTorch, bf16, channels-last": half(fast),
    }
    if compiled:
        logger.info("compiling with torch.compile")
        found["torch.compile, bf16, channels-last"] = half(torch.compile(fast, dynamic=False))
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
            found[f"ONNX Runtime, {precision}"] = _onnxruntime(graph_of(source, precision, folder), clips, threads)
    for name in NAMES:
        program = backend(name)
        reason = program.cannot_build_reason() or program.unavailable_reason()
        if clips.is_cuda and name == "openvino":
            reason = ON_CPU
        elif name == "aotinductor" and not compiled:
            reason = "left out, as asked for"
        if reason:
            absent[name] = reason
            continue
        for precision in program.PRECISIONS:
            title = f"{name}, {precision}"
            if precisions and precision not in precisions:
                absent[title] = "left out, as asked for"
                continue
            try:
                bundle = build_untested(source, name, precision, folder, batch=len(clips), threads=threads)
                runner = load_runner(bundle)
            except UserError as error:
                absent[title] = str(error)
                continue
            found[title] = lambda runner=runner: runner(clips)  # type: ignore[misc]
            if name == "openvino" and precision == "int8":
                found[f"{title}{BY_HAND}"] = by_hand(bundle, clips)
    return found


def graph_of(source: Source, precision: str, folder: Path) -> Path:
    """The graph that engines of a precision are made of: in fp32, or for int8 and fp8 quantised. Made once in a folder."""
    floats, integers = folder / FLOAT, folder / "int8.onnx"
    if not floats.exists():
        source.export(floats)
    if precision not in CALIBRATED:
        return floats
    if not integers.exists():
        logger.info("calibrating on noise: only speed is measured")
        clip = source.clip
        noise = np.random.default_rng(0).integers(0, 256, (2, clip.frames, clip.size, clip.size, 3), np.uint8)
        quantise(floats, integers, [noise], method="minmax")
    return integers


def build_untested(source: Source, name: str, precision: str, folder: Path, *, batch: int, threads: int) -> Bundle:
    """An engine that nobody has compared with the network, in a folder of its own below `folder`, which keeps the graphs."""
    logger.info(f"building {name}, {precision}")
    place, program = folder / f"{name}, {precision}", backend(name)
    place.mkdir()
    settings = Engine.model_validate(
        {"precision": precision, "threads": threads, "batch": BatchProfile(min=1, best=batch, max=batch)}
    )
    recipe = EngineRecipe(engine=settings, calibration=Calibration())
    in_precision(graph_of(source, precision, folder), place / GRAPH, precision, program)
    built = program.build(Graph(place / GRAPH, source.model), settings)
    return Bundle(place, describe(place, source, recipe, name, program, built, None))


def _onnxruntime(file: Path, clips: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    array: np.ndarray = clips.numpy()
    return lambda: torch.from_numpy(session.run([OUTPUT], {INPUT: array})[0])


def _first_answers(answers: dict[str, Callable[[], torch.Tensor]], absent: dict[str, str]) -> dict[str, torch.Tensor]:
    """The logits of each that gives some. What cannot be compiled for this machine is absent, and hides no other."""
    found: dict[str, torch.Tensor] = {}
    for name, answer in answers.items():
        try:
            found[name] = answer().float().cpu()
        except (RuntimeError, UserError) as error:
            if name == EAGER:
                raise
            absent[name] = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return found


def _contestant(answer: Callable[[], torch.Tensor], device: torch.device) -> Contestant:
    def work() -> None:
        answer()
        now(device)

    return work
