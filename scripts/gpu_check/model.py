"""Networks alone, on clips that lie ready: which layout and precision is fastest, and what a larger batch gives and takes."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from gpu_check import measure
from gpu_check.model_job import Job, Mode
from gpu_check.record import Record, steps
from ssv2rt.core.hardware import DTYPES, Precision, choose_precision, native_bf16
from ssv2rt.models.clip_model import Normalise
from ssv2rt.training.determinism import set_deterministic

TASKS = ("training", "forward")


def resnet18_small(record: Record) -> None:
    _network(record, "resnet3d18", 112)


def resnet50_small(record: Record) -> None:
    _network(record, "resnet3d50", 112)


def resnet18(record: Record) -> None:
    _network(record, "resnet3d18", 224)


def resnet50(record: Record) -> None:
    _network(record, "resnet3d50", 224)


def resnet50_pool(record: Record) -> None:
    _network(record, "resnet3d50-pool", 224)


def normalising(record: Record) -> None:
    """From bytes to what the first convolution takes: by one kernel, and as it is written down."""
    where = measure.device()
    kind = DTYPES[choose_precision("auto", where)]
    shape = (2, 4, 32, 32, 3) if record.tiny else (16, 16, 224, 224, 3)
    clips = torch.randint(0, 256, shape, dtype=torch.uint8, device=where)
    normalise = Normalise().to(where)

    def plain() -> torch.Tensor:
        pixels = (clips.float().permute(0, 4, 1, 2, 3) - normalise.mean) * normalise.scale
        return pixels.to(kind)

    ways = {"one kernel": lambda: normalise.at_once(clips, kind), "as it is written": plain}
    results = [way() for way in ways.values()]
    for name, way in ways.items():
        median = measure.spent(way, where, seconds=record.moment(0.4)).median
        record.row(
            "normalising",
            way=name,
            to=str(kind),
            ms=1000 * median,
            gigabytes_per_second=3 * clips.numel() / median / 1e9,
        )
    off = (results[0].float() - results[1].float()).abs().max().item()
    record.check("both ways give the same", off < 0.05, f"largest difference {off:.2g}")
    last = results[0].is_contiguous(memory_format=torch.channels_last_3d)
    record.check(
        "in channels-last-3d, in the precision of training", last and results[0].dtype == kind, str(results[0].dtype)
    )


def compiled(record: Record) -> None:
    """torch.compile beside the same network without it."""
    where = measure.device()
    if record.brief:
        record.note("torch.compile is left out by --quick: it takes a minute")
        return
    job = Job(record, "resnet3d18", 112)
    batch = 16 if where.type == "cuda" else 2
    pick = _pick(where)
    tasks = ["training"] if record.quick else ["forward", "training"]  # `engines` compiles forwards
    for task in steps(record, tasks, each=10, what="compiling for"):
        plain = job.measured(pick, task, batch, seconds=0.5)
        start = time.perf_counter()
        faster = job.measured(replace(pick, compiled=True), task, batch, seconds=0.5)
        record.fact(f"torch.compile, {task}: times as fast", faster.rate / plain.rate)
        record.fact(f"torch.compile, {task}: seconds to compile and measure", time.perf_counter() - start)


def _network(record: Record, name: str, size: int) -> None:
    """Batch sizes in the way that the trainer takes, and then the other ways at one batch size."""
    set_deterministic(False)  # as the trainer does: cuDNN tries its algorithms
    job, pick = Job(record, name, size), _pick(measure.device())
    quarter = record.left() / 4
    for number, task in enumerate(TASKS):
        _sweep(job, pick, task, until=record.left() - quarter)
        _compare(job, pick, task, 2 if record.tiny else 32 if size <= 112 else 8, until=quarter * (2 - 2 * number))


def _compare(job: Job, pick: Mode, task: str, batch: int, *, until: float) -> None:
    """All layouts and precisions at one batch size, the trainer's first, while more than `until` seconds are left."""
    record, where = job.record, job.where
    gpu = where.type == "cuda"
    ways: tuple[tuple[Precision, bool], ...] = (("fp32", False), ("bf16", False), ("bf16", True), ("fp32", True))
    modes = [Mode(precision, last, tf32=gpu) for precision, last in ways]
    modes = [mode for mode in modes if mode != pick and (not gpu or mode.precision != "bf16" or native_bf16(where))]
    if gpu:
        modes += [Mode("fp16", True)] * (pick.precision != "fp16") + [Mode("fp32", False, tf32=False)]
    rates: dict[Mode, float] = {}
    cost = 0.0
    for mode in [pick, *modes]:
        # Nearly all of the time goes into what cuDNN tries out, which is as much slower as the arithmetic is.
        wanted = cost * (1.2 if mode.precision != "fp32" else 3 if mode.tf32 else 8)
        if record.left() - until < wanted:
            record.note(f"no time for {job.title}, {task} in {mode}")
            continue
        record.doing(f"{task}, {mode}")
        start = time.perf_counter()
        if rate := job.measured(mode, task, batch, seconds=record.moment(0.4)).rate:
            rates[mode] = rate
        cost = cost or time.perf_counter() - start
    if pick not in rates:
        return
    fastest = max(rates, key=lambda mode: rates[mode])
    share, plain = rates[pick] / rates[fastest], rates.get(Mode("fp32", False, tf32=gpu))
    record.row(
        "the trainer's choice",
        network=job.title,
        task=task,
        batch=batch,
        chosen=str(pick),
        fastest=str(fastest),
        chosen_reaches=share,
        times_contiguous_fp32=rates[pick] / plain if plain else None,
    )
    if gpu:  # on a shared CPU, a difference may be anybody's
        record.check(f"the trainer's way is the fastest: {job.title}, {task}", share > 0.9, f"{share:.2f} of {fastest}")


def _sweep(job: Job, mode: Mode, task: str, *, until: float) -> None:
    """Larger and larger batches, until one does not fit, or more than `until` seconds would not be left."""
    record, where = job.record, job.where
    batch, times, best = 2 if record.tiny else 8, 4 if where.type == "cuda" else 2, None
    while record.left() > until:
        record.doing(f"{task}, batch {batch}")
        start = time.perf_counter()
        found = job.measured(mode, task, batch, seconds=record.moment(0.4))
        cost = time.perf_counter() - start
        if not found.rate:
            record.fact(f"batch that does not fit: {job.title}, {task}", f"{batch}: {found.reason}")
            if times == 2 or batch < 16:
                break
            batch, times = batch // 2, 1  # and after that one, no other
            continue
        best = found
        if times == 1 or record.left() - until < times * cost or (record.tiny and batch > 2):
            break
        batch *= times
    if best and best.megabytes:
        fits = int(torch.cuda.get_device_properties(where).total_memory * 0.95 / 1e6 / (best.megabytes / best.batch))
        record.fact(f"batch that would fill the GPU: {job.title}, {task}", fits)


def _pick(where: torch.device) -> Mode:
    """What the trainer takes."""
    return Mode(choose_precision("auto", where), channels_last=True, tf32=where.type == "cuda")
