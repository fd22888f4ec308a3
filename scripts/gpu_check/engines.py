"""Engines of every backend that is here, beside PyTorch: agreement, clips per second, latency."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_check import measure
from gpu_check.record import Missing, Record
from gpu_check.runners import Network, TorchRunner, cast, fast, half, in_flight
from gpu_check.subject import MOST, Subject
from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.errors import UserError
from ssv2rt.core.recipes import BatchProfile, Calibration, Engine, EngineRecipe
from ssv2rt.engines.backends.registry import NAMES, backend, load_runner
from ssv2rt.engines.base import Graph, Runner
from ssv2rt.engines.build import GRAPH, describe, in_precision
from ssv2rt.engines.bundle import INFO, Bundle, open_bundle

LARGEST_ERROR = {"fp32": 2e-3, "TF32": 1e-2, "fp16": 1e-2, "bf16": 4e-2, "int8": 0.2, "fp8": 0.3}
"""Of logits, beside those of PyTorch in fp32: norm of the difference over norm."""
BATCHES = (1, 8, MOST)
BACKENDS = {
    "tensorrt": ("fp16", "int8", "bf16", "fp8", "fp32"),
    "tensorrt-rtx": ("fp16", "int8", "fp8", "bf16"),
    "aotinductor": ("bf16", "fp16", "fp32"),
    "openvino": ("fp16", "int8", "bf16"),
}
"""Precisions in the order in which they are tried."""


def graphs(record: Record) -> None:
    """The network as ONNX, in fp32 and in int8, for all backends."""
    subject = Subject(record)
    clip = subject.clip
    record.fact("network", f"{subject.source.name}, {clip.frames} x {clip.size} x {clip.size}")
    record.fact("clips that are compared", len(subject.clips))
    record.fact("classes that PyTorch names first", len(set(subject.logits.argmax(1).tolist())))
    for name in ("floats", "integers"):
        start = time.perf_counter()
        path: Path = getattr(subject, name)
        record.fact(f"seconds to make {path.name}", time.perf_counter() - start)


def pytorch(record: Record) -> None:
    """PyTorch itself, to compare with."""
    where, subject = measure.device(), Subject(record)
    plain = copy.deepcopy(subject.model).to(where)

    def eager(tf32: bool) -> Network:
        def run(clips: torch.Tensor) -> torch.Tensor:
            torch.backends.cudnn.allow_tf32 = tf32
            logits: torch.Tensor = plain.head(plain.backbone(plain.normalise(clips).contiguous()))
            return logits

        return run

    ways = [("contiguous", "fp32", eager(False))]
    ways.append(("channels-last-3d", "bf16", fast(subject.model, where, torch.bfloat16)))
    if where.type == "cuda":
        ways.append(("channels-last-3d", "fp16", fast(subject.model, where, torch.float16)))
        ways.append(("contiguous", "TF32", eager(True)))
    for number, (layout, precision, run) in enumerate(ways):
        record.doing(f"{layout}, {precision}")
        seconds = record.left() / (len(ways) - number)
        measured(record, f"PyTorch, {layout}", precision, TorchRunner(run, where), subject, where, seconds)


def compiled(record: Record) -> None:
    """The network through torch.compile."""
    if record.brief:
        record.note("left out by --quick: it takes a minute")
        return
    where, subject = measure.device(), Subject(record)
    kind = half(where)
    run = cast(torch.compile(copy.deepcopy(subject.model).channels_last().to(where), dynamic=False), kind)
    runner, start = TorchRunner(run, where), time.perf_counter()
    runner(subject.clips[: subject.best])
    record.fact("seconds to compile for one batch size", time.perf_counter() - start)
    name = "bf16" if kind == torch.bfloat16 else "fp16"
    measured(record, "torch.compile", name, runner, subject, where, record.left(), batches=(subject.best,))


def tensorrt(record: Record) -> None:
    _backend(record, "tensorrt")


def tensorrt_rtx(record: Record) -> None:
    _backend(record, "tensorrt-rtx")


def aotinductor(record: Record) -> None:
    _backend(record, "aotinductor")


def openvino(record: Record) -> None:
    _backend(record, "openvino")


def best_bundle(record: Record) -> Bundle:
    """The fastest engine that this check has built and that agrees; or one of the first backend that is here.

    Raises:
        Missing: there is no backend.
    """
    subject = Subject(record)
    known = [json.loads(file.read_text(encoding="utf-8")) for file in subject.folder.glob("*.rate.json")]
    if known := [found for found in known if found["agrees"]]:
        return open_bundle(Path(max(known, key=lambda found: found["rate"])["folder"]))
    for name in sorted(set(BACKENDS) & set(NAMES), key=list(BACKENDS).index):
        if not _absent(name) and name != "aotinductor":  # which takes too long to build on the way
            return _built(subject, name, "fp16")
    raise Missing("engines", "no backend is here, or none that is built in seconds")


def _backend(record: Record, name: str) -> None:
    subject = Subject(record)
    if reason := _absent(name):
        if name == "tensorrt-rtx" and name in NAMES and not backend(name).cannot_build_reason() and not record.brief:
            _build_for_another_gpu(record, subject)
        raise Missing(name, reason)
    if record.brief and name == "aotinductor":
        record.note("left out by --quick: it takes a minute")
        return
    known = getattr(backend(name), "PRECISIONS", tuple(LARGEST_ERROR))
    wanted = [precision for precision in BACKENDS[name] if precision in known]
    if record.quick:
        wanted = wanted[: 1 if name == "aotinductor" else 2]
    cost = 3.0
    for number, precision in enumerate(wanted):
        record.doing(precision)
        if number and record.left() < cost:
            record.note(f"no time for {', '.join(wanted[number:])}")
            return
        start = time.perf_counter()
        _engine(record, subject, name, precision, record.left() / (len(wanted) - number))
        cost = max(cost, time.perf_counter() - start)


def _engine(record: Record, subject: Subject, name: str, precision: str, seconds: float) -> None:
    """Builds, loads and measures an engine."""
    start = time.perf_counter()
    try:
        bundle = _built(subject, name, precision)
        runner = load_runner(bundle)
    except UserError as error:
        record.row("engines", engine=name, precision=precision, refused=str(error))
        record.check(f"{name} builds and loads {precision}", False, str(error))
        return
    except ModuleNotFoundError as error:
        record.unavailable_reason(str(error.name), f"wanted for {precision}")
        return
    took = time.perf_counter() - start
    settings = bundle.info.settings
    about: dict[str, Any] = {"seconds_to_build": took, "megabytes": bundle.engine_file.stat().st_size / 1e6}
    about |= {key: settings[key] for key in ("arithmetic", "layers") if key in settings}
    where = measure.device() if bundle.info.target.startswith("sm") else torch.device("cpu")
    rate, agrees = measured(record, name, precision, runner, subject, where, max(1.0, seconds - took), **about)
    facts = {"rate": rate, "agrees": agrees, "folder": str(bundle.path)}
    write_json(subject.folder / f"{name}-{precision}.rate.json", facts)


def _absent(name: str) -> str:
    """Why a backend takes no part here; empty if it does."""
    if name not in NAMES:
        return "this version has no such backend"
    if name == "openvino" and measure.device().type == "cuda":
        return "it is for CPUs, and there is a GPU"
    return backend(name).unavailable_reason() or backend(name).cannot_build_reason()


def _build_for_another_gpu(record: Record, subject: Subject) -> None:
    """What TensorRT for RTX can do where there is no GPU."""
    start = time.perf_counter()
    bundle = _built(subject, "tensorrt-rtx", "fp16", targets=("sm89",))
    size = bundle.engine_file.stat().st_size / 1e6
    built = {"seconds_to_build": time.perf_counter() - start, "megabytes": size}
    record.row("engines", engine="tensorrt-rtx", precision="fp16", **built, refused="for sm89, cannot run here")


def _built(subject: Subject, name: str, precision: str, targets: tuple[str, ...] = ()) -> Bundle:
    """An engine as `ssv2rt build-engine` makes it, but not compared yet."""
    program, folder = backend(name), subject.folder / f"{name}-{precision}"
    folder.mkdir(exist_ok=True)
    sizes = BatchProfile(min=1, best=subject.best, max=MOST)
    settings = Engine.model_validate({"precision": precision, "batch": sizes, "targets": targets})
    calibrated = precision in ("int8", "fp8")
    in_precision(subject.integers if calibrated else subject.floats, folder / GRAPH, precision, program)
    graph = Graph(folder / GRAPH, subject.source.model)
    built = program.build(graph, settings)
    recipe = EngineRecipe(engine=settings, calibration=Calibration())
    info = describe(folder, subject.source, recipe, name, program, built, None)
    write_json(folder / INFO, info.model_dump(mode="json"))
    for other in folder.iterdir():  # what a backend leaves beside its engine is no part of the bundle
        if other.is_file() and other.name not in {*info.files, INFO}:
            other.unlink()
    return open_bundle(folder)


def measured(
    record: Record,
    name: str,
    precision: str,
    runner: Runner,
    subject: Subject,
    where: torch.device,
    seconds: float,
    batches: tuple[int, ...] = BATCHES,
    **about: Any,
) -> tuple[float, bool]:
    """Agreement, latency, and clips per second with batches in flight. Returns the rate and whether it agrees."""
    clips, expected = subject.clips.to(where), subject.logits
    found = torch.cat([runner(part).float().cpu() for part in clips.split(batches[-1])])
    error = ((found - expected).norm() / expected.norm()).item()
    same = (found.argmax(1) == expected.argmax(1)).double().mean().item()
    agrees = error < LARGEST_ERROR[precision]
    row: dict[str, Any] = {"engine": name, "precision": precision, "error": error, "same_class_first": same}
    each = record.moment(min(1.0, 0.6 * seconds / (len(batches) + 1)))
    for size in batches:
        times = measure.latencies(_on(runner, clips[:size]), seconds=each)
        row[f"ms_batch_{size}"] = 1000 * times[len(times) // 2]
        row[f"ms_batch_{size}_p95"] = 1000 * times[min(len(times) - 1, int(0.95 * len(times)))]
    rate = in_flight(runner, clips[: subject.best], each)
    record.row("engines", **row, clips_per_second=rate, batch=subject.best, **about)
    record.check(f"{name}, {precision}, agrees with PyTorch in fp32", agrees, f"error {error:.2g}")
    record.check(f"{name}, {precision}, is finite", bool(found.isfinite().all()))
    return rate, agrees


def _on(runner: Runner, clips: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: runner(clips)
