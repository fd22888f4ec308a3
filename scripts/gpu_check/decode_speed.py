"""How fast videos become clips on the device, what changing sizes cost, and whether memory grows. N clips, T frames."""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpu_check.measure import device, now, resident_megabytes, used_megabytes, usual_decoder
from gpu_check.record import Record, steps
from gpu_check.usage import Usage
from gpu_check.videos import clips_like_ssv2, film
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.video.probe import probe


@dataclass(frozen=True)
class Pace:
    """How fast a loader was."""

    clips: float
    """Per second."""
    frames: float
    """Per second: all that had to be decoded, up to the last one of each clip."""
    bad: int
    decoder: float | None
    """Percent of NVDEC, as the driver tells it."""


def speed(record: Record) -> None:
    """Batch sizes and threads, by DALI's decoder on this device and by PyAV."""
    clip, requests = _requests(record)
    cores = os.cpu_count() or 1
    ours = usual_decoder()
    cases = [(ours, 32, cores), (ours, 8, cores), (ours, 64, cores), ("pyav", 32, cores)]
    cases += [(ours, 32, count) for count in sorted({max(1, cores // 4), max(1, cores // 2), 2 * cores})]
    cases += [(ours, 16, cores), (ours, 128, cores), ("pyav", 32, max(1, cores // 2))]
    cases = list(dict.fromkeys(cases))
    if record.quick:
        cases = [(ours, 4, cores), (ours, 8, cores), ("pyav", 4, cores)]
    each = record.left() / len(cases)
    record.fact("clip", f"{clip.frames} x {clip.size} x {clip.size} of {requests[0].frame_size} VP9")
    for name, batch, threads in steps(record, cases, each=0.8 * each, what="decoder, batch, threads"):
        data = Data.model_validate({"decoder": name, "threads": threads})
        with Usage() as usage:
            loader = ClipLoader(clip=clip, batch=batch, data=data, device=device())
            found = pace(loader, requests, batch, seconds=record.moment(0.45 * each), usage=usage)
        record.row(
            "decoding speed",
            decoder=name,
            batch=batch,
            threads=threads,
            clips_per_second=found.clips,
            frames_per_second=found.frames,
            nvdec_percent=found.decoder,
        )
        record.check(f"no clip fails: {name}, batch {batch}, {threads} threads", not found.bad, f"{found.bad} bad")
    record.fact("decoder use is told by", Usage().source)


def sizes(record: Record) -> None:
    """The same clips grouped by size and shuffled; and a width that is no multiple of 16 beside one that is."""
    where, count = device(), 3 if record.quick else 12
    folder = record.work / "films" / "sizes"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [(427, 240), (432, 240), (320, 240), (352, 240), (448, 256), (368, 208)]
    shapes = [(w // 2, 128) for w, _ in shapes[:3]] if record.quick else shapes
    clip = Clip(frames=16, size=112)
    groups: list[list[ClipRequest]] = []
    for width, height in shapes:
        made = [film(folder / f"{width}x{height}-0", "vp9", width=width, height=height, frames=24, gop=100)]
        groups.append([evaluation_request(f"{n}", made[0], probe(made[0]), clip=clip) for n in range(count)])
    data = Data.model_validate({"decoder": usual_decoder()})
    grouped = list(itertools.chain(*groups))
    shuffled = random.Random(0).sample(grouped, len(grouped))
    orders = {f"only {w} x {h}": group for (w, h), group in zip(shapes, groups, strict=True)}
    orders = {"grouped by size": grouped, "shuffled": shuffled, **orders}
    each = record.left() / len(orders)
    rates: dict[str, float] = {}
    for name in steps(record, list(orders), each=0.7 * each, what="orders"):
        loader = ClipLoader(clip=clip, batch=count, data=data, device=where)
        found = pace(loader, orders[name], count, seconds=record.moment(0.5 * each))
        rates[name] = found.clips
        record.row("changing sizes", order=name, clips_per_second=found.clips, bad=found.bad)
    if {"grouped by size", "shuffled"} <= rates.keys():
        record.fact("shuffled sizes reach, of grouped ones", rates["shuffled"] / rates["grouped by size"])


def memory(record: Record) -> None:
    """2,000 clips, one loader: what is in use of the GPU and of this process as it goes on."""
    where, total, batch = device(), 60 if record.quick else 2000, 4 if record.quick else 32
    clip, requests = _requests(record)
    data = Data.model_validate({"decoder": usual_decoder()})
    loader = ClipLoader(clip=clip, batch=batch, data=data, device=where)
    marks: list[tuple[int, float | None, float]] = []
    done = 0
    endless = in_batches(itertools.cycle(requests), batch)
    for made in loader.batches(itertools.islice(endless, -(-total // batch))):
        done += len(made.requests)
        if done >= total * (len(marks) + 1) / 8:
            now(where)
            marks.append((done, used_megabytes(where), resident_megabytes()))
            record.row("memory", clips=done, gpu_megabytes=marks[-1][1], process_megabytes=marks[-1][2])
        if record.left() < 1 and len(marks) > 3:
            record.note(f"stopped after {done} clips: no time left")
            break
    first, last = marks[min(2, len(marks) - 1)], marks[-1]
    for name, column, limit in (("the GPU's memory", 1, 300), ("this process", 2, 200)):
        if first[column] is not None:
            grown = last[column] - first[column]  # type: ignore[operator]
            record.fact(f"growth of {name} in MB, from clip {first[0]} to {last[0]}", grown)
            record.check(f"{name} does not grow", grown < limit, f"{grown:.0f} MB from clip {first[0]} to {last[0]}")


def pace(
    loader: ClipLoader, requests: Sequence[ClipRequest], batch: int, *, seconds: float, usage: Usage | None = None
) -> Pace:
    """Lets a loader go through requests over and over; counting begins when it is as far ahead as it may be."""
    where, clips, frames, bad = device(), 0, 0, 0
    batches = loader.batches(in_batches(itertools.cycle(requests), batch))
    for _ in range(3):
        next(batches)
    start = now(where)
    for made in batches:
        clips += len(made.requests)
        frames += sum(int(request.frames.max()) + 1 for request in made.requests)
        bad += len(made.bad)
        if time.perf_counter() - start > seconds:
            break
    took = now(where) - start
    busy = usage.decoder if usage else None
    batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
    return Pace(clips / took, frames / took, bad, busy)


def _requests(record: Record) -> tuple[Clip, list[ClipRequest]]:
    """Plain clips of the synthetic set."""
    clip = Clip(frames=8, size=64) if record.quick else Clip(frames=16, size=224)
    paths: list[Path] = clips_like_ssv2(record)
    return clip, [evaluation_request(path.name, path, probe(path), clip=clip) for path in paths]
