"""How fast engines are, beside PyTorch, ONNX Runtime, and their own backend called by hand."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssv2rt.benchmark.rounds import Contestant, machine, race
from ssv2rt.core.console import say
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, native_bf16, versions
from ssv2rt.core.recipes import BatchProfile, Calibration, Clip, Engine, EngineRecipe, Model
from ssv2rt.engines.backends.openvino import by_hand
from ssv2rt.engines.backends.registry import NAMES, backend, load_runner
from ssv2rt.engines.base import Graph
from ssv2rt.engines.build import FLOAT, GRAPH, describe, in_precision
from ssv2rt.engines.bundle import Bundle
from ssv2rt.engines.export import INPUT, OUTPUT
from ssv2rt.engines.quantization import quantise
from ssv2rt.engines.source import Source, source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.models.registry import build_model

EAGER = "PyTorch, fp32, contiguous"


def benchmark_engine(
    model: Model, clip: Clip, *, batch: int, threads: int, rounds: int, compiled: bool = True
) -> dict[str, Any]:
    """Clips per second of a network with random weights, on random clips that lie ready.

    Args:
        model: the network.
        clip: its clips.
        batch: clips in a batch, of which each contestant computes one in a turn.
        threads: for each contestant; 0 for one a core.
        rounds: timed ones.
        compiled: whether torch.compile and AOTInductor, which take a minute to compile, take part.
    """
    threads = threads or cores()
    device = choose_device()
    torch.manual_seed(0)
    network = build_model(model, 174).eval()
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8)
    absent: dict[str, str] = {}
    answers: dict[str, Callable[[], torch.Tensor]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            answers |= _pytorch(network, clips.to(device), device, compiled)
            answers |= _engines(network, clip, clips, Path(folder), threads, absent, compiled)
            found = {name: answer().float().cpu() for name, answer in answers.items()}
            rates = race({name: _contestant(answer) for name, answer in answers.items()}, units=batch, rounds=rounds)
    finally:
        torch.set_num_threads(before)
    spread = found[EAGER].max() - found[EAGER].min()
    eager = rates[EAGER].median
    hand = {name: rate for name, rate in rates.items() if name.endswith("by hand")}
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
            name.removesuffix(", by hand"): rates[name.removesuffix(", by hand")].median / rate.median
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
        say("compiling with torch.compile")
        found["torch.compile, bf16, channels-last"] = half(torch.compile(fast, dynamic=False))
    return found


def _engines(
    model: ClipModel,
    clip: Clip,
    clips: torch.Tensor,
    folder: Path,
    threads: int,
    absent: dict[str, str],
    compiled: bool,
) -> dict[str, Callable[[], torch.Tensor]]:
    source = source_of_model(model, "benchmark", tuple(str(number) for number in range(174)), clip)
    floats, integers = graphs_of(source, folder / "graphs")
    found: dict[str, Callable[[], torch.Tensor]] = {}
    for name, file in (("fp32", floats), ("int8", integers)):
        found[f"ONNX Runtime, {name}"] = _onnxruntime(file, clips, threads)
    for name in NAMES:
        program = backend(name)
        if reason := program.cannot_build_reason() or program.unavailable_reason():
            absent[name] = reason
            continue
        if name == "aotinductor" and not compiled:
            absent[name] = "left out, as asked for"
            continue
        for precision in program.PRECISIONS:
            title = f"{name}, {precision}"
            try:
                bundle = build_untested(
                    source, name, precision, floats, integers, folder / title, batch=len(clips), threads=threads
                )
            except UserError as error:
                absent[title] = str(error)
                continue
            runner = load_runner(bundle)
            found[title] = lambda runner=runner: runner(clips)  # type: ignore[misc]
            if name == "openvino" and precision == "int8":
                found[f"{title}, by hand"] = by_hand(bundle, clips)
    return found


def graphs_of(source: Source, folder: Path) -> tuple[Path, Path]:
    """The fp32 and the int8 graph of a network, in a new folder."""
    folder.mkdir()
    floats, integers = folder / FLOAT, folder / "int8.onnx"
    source.export(floats)
    say("calibrating on noise: only speed is measured")
    clip = source.clip
    noise = np.random.default_rng(0).integers(0, 256, (2, clip.frames, clip.size, clip.size, 3), np.uint8)
    quantise(floats, integers, [noise], method="minmax")
    return floats, integers


def build_untested(
    source: Source,
    name: str,
    precision: str,
    floats: Path,
    integers: Path,
    folder: Path,
    *,
    batch: int,
    threads: int,
) -> Bundle:
    """An engine, in a new folder, that nobody has compared with the network."""
    say(f"building {name}, {precision}")
    folder.mkdir()
    program = backend(name)
    settings = Engine.model_validate(
        {"precision": precision, "threads": threads, "batch": BatchProfile(min=1, best=batch, max=batch)}
    )
    recipe = EngineRecipe(engine=settings, calibration=Calibration())
    in_precision(integers if precision == "int8" else floats, folder / GRAPH, precision, program)
    built = program.build(Graph(folder / GRAPH, source.model), settings)
    return Bundle(folder, describe(folder, source, recipe, name, program, built, None))


def _onnxruntime(file: Path, clips: torch.Tensor, threads: int) -> Callable[[], torch.Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    array: np.ndarray = clips.numpy()
    return lambda: torch.from_numpy(session.run([OUTPUT], {INPUT: array})[0])


def _contestant(answer: Callable[[], torch.Tensor]) -> Contestant:
    def work() -> None:
        logits = answer()
        if logits.is_cuda:
            torch.cuda.synchronize(logits.device)

    return work
