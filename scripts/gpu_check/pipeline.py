"""From files to uint8 clips (N, T, S, S, 3) on the device: nothing is copied, both devices agree, and what it costs.

Letters: N clips, T frames, S size.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_check.decode import decoder, frames_only
from gpu_check.decode_speed import pace
from gpu_check.measure import device, now, usual_decoder, without_nvdec
from gpu_check.record import Record, steps
from gpu_check.videos import clips_like_ssv2, like_ssv2
from ssv2rt.core.recipes import Augment, Clip, Data
from ssv2rt.dataset.index import open_manifest
from ssv2rt.models.clip_model import Normalise
from ssv2rt.pipelines.dali_graph import ClipGraph
from ssv2rt.pipelines.loaded_clip import LoadedClip
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request, training_request
from ssv2rt.pipelines.requests import ClipRequest, ColorChange, Patch
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe


def no_copy(record: Record) -> None:
    """The memory that DALI wrote is the memory that the first convolution reads."""
    where, clip = device(), _clip(record)
    requests = _plain(record, clip)[:8]
    loader = ClipLoader(clip=clip, batch=4, data=_data(), device=where, augment=True)
    watched = Watched(loader._graph._pipe)  # type: ignore[union-attr]
    loader._graph._pipe = watched  # type: ignore[union-attr]
    held, before = [], torch.cuda.memory_allocated(where) if where.type == "cuda" else 0
    for number, batch in enumerate(loader.batches([requests[:4], requests[4:]] * 4)):
        held.append(batch.clips)
        pointer = batch.clips.data_ptr()
        record.check(f"batch {number}: torch has DALI's memory", pointer == watched.pointers[number], hex(pointer))
        record.check(f"batch {number}: it is on {where}", batch.clips.device == where, str(batch.clips.device))
        if where.type == "cuda":
            shown = batch.clips.__cuda_array_interface__["data"][0]
            record.check(f"batch {number}: so says __cuda_array_interface__", shown == pointer, hex(shown))
    if where.type == "cuda":
        taken = torch.cuda.memory_allocated(where) - before
        record.check("torch allocated nothing for 8 batches", taken == 0, f"{taken} bytes")
    record.check("batches that are held share no memory", len({clips.data_ptr() for clips in held}) == len(held))
    copies = [clips.clone() for clips in held]
    for _ in loader.batches([requests[4:]] * 6):  # DALI may use again what nobody holds, and nothing else
        pass
    same = all(torch.equal(clips, copy) for clips, copy in zip(held, copies, strict=True))
    record.check("batches that are held stay what they are", same)
    view = held[0].permute(0, 4, 1, 2, 3)
    last = view.is_contiguous(memory_format=torch.channels_last_3d) and view.data_ptr() == held[0].data_ptr()
    record.check("a clip, permuted, is channels-last-3d without a copy", last, f"{tuple(view.shape)} {view.stride()}")
    pixels = Normalise().to(where)(held[0])
    record.check("and so it is when normalised", pixels.is_contiguous(memory_format=torch.channels_last_3d))


def augmentations(record: Record) -> None:
    """The same frames through the graph of the GPU and through that of the CPU."""
    where, clip = device(), _clip(record)
    base = _plain(record, clip)[0]
    cases: dict[str, ClipRequest] = {
        "as it is": base,
        "mirrored": replace(base, flip=True),
        "brighter": replace(base, color=ColorChange(brightness=1.4)),
        "darker": replace(base, color=ColorChange(brightness=0.6)),
        "more contrast": replace(base, color=ColorChange(contrast=1.4)),
        "less contrast": replace(base, color=ColorChange(contrast=0.6)),
        "grey": replace(base, color=ColorChange(saturation=0.0)),
        "more colour": replace(base, color=ColorChange(saturation=1.4)),
        "another hue": replace(base, color=ColorChange(hue=18.0)),
        "all of it": replace(
            base, flip=True, color=ColorChange(1.2, 0.8, 1.3, -12.0), erased=Patch(0.2, 0.3, 0.4, 0.3)
        ),
        "erased": replace(base, erased=Patch(0.25, 0.5, 0.5, 0.25)),
    }
    split = open_manifest(like_ssv2(record)).split("train")
    for row in range(min(5, len(split))):
        augment = Augment(grayscale=0.3, erase=0.5)
        cases[f"as training draws it, {row}"] = training_request(
            split, row, clip=clip, augment=augment, seed=0, epoch=1
        )
    fetched = [LoadedClip(r, frames=decode_clips(r.path, r, size=clip.size)) for r in cases.values()]
    made: list[torch.Tensor] = []
    for number in (None, where.index) if where.type == "cuda" else (None, None):
        graph = ClipGraph(size=clip.size, batch=len(fetched), decoder="none", augment=True, threads=2, gpu=number)
        graph.feed(fetched)
        taken = graph.take()
        assert taken is not None
        made.append(taken.cpu().float())
    record.fact("compared", "GPU with CPU" if where.type == "cuda" else "CPU with CPU")
    for (name, request), cpu, here in zip(cases.items(), *made, strict=True):
        change = (cpu - torch.from_numpy(fetched[0].frames[0]).float()).abs().mean().item()  # type: ignore[index]
        mean, most = (here - cpu).abs().mean().item(), (here - cpu).abs().max().item()
        record.row("augmentations", change=name, mean_difference=mean, largest_difference=most, from_the_plain=change)
        record.check(f"both devices agree: {name}", mean < 1.0, f"mean {mean:.3f}, largest {most:.0f}")
        if request.erased == cases["erased"].erased:
            box = _inside(here, request.erased)
            grey = torch.tensor([124.0, 116.0, 104.0])
            record.check("what is erased is the mean colour", bool(((box - grey).abs() <= 1).all()))


def speed(record: Record) -> None:
    """What each stage reaches alone, and the share that decoding has of the whole."""
    where, clip, batch = device(), _clip(record), 4 if record.quick else 32
    plain = _plain(record, clip)
    split = open_manifest(like_ssv2(record)).split("train")
    drawn = [
        training_request(split, n % len(split), clip=clip, augment=Augment(), seed=0, epoch=1 + n // len(split))
        for n in range(max(len(split), 4 * batch))
    ]

    def through(requests: list[ClipRequest], augment: bool, **data: Any) -> Callable[[float], float]:
        def measured(seconds: float) -> float:
            settings = Data.model_validate({"decoder": usual_decoder(), **data})
            loader = ClipLoader(clip=clip, batch=batch, data=settings, device=where, augment=augment)
            return pace(loader, requests, batch, seconds=seconds).clips

        return measured

    stages: dict[str, Callable[[float], float]] = {
        "all: read, probe, decode, cut, augment": through(drawn, True),
        "decode alone, by DALI": lambda seconds: _decode_alone(plain, batch, seconds),
        "without augmentation": through(plain, False),
        "read and probe alone": lambda seconds: _probe_alone(plain, seconds),
        "all, decoded by PyAV": through(drawn, True, decoder="pyav"),
    }
    if where.type == "cuda" and (reason := without_nvdec()):
        record.unavailable_reason("NVDEC", reason)
        del stages["decode alone, by DALI"]
    rates: dict[str, float] = {}
    each = record.left() / len(stages)
    for name in steps(record, list(stages), each=0.6 * each, what="stages"):
        rates[name] = stages[name](record.moment(0.5 * each))
        record.row("stages", stage=name, clips_per_second=rates[name])
    record.fact("clip", f"{clip.frames} x {clip.size} x {clip.size}, batches of {batch}")
    whole = rates[next(iter(stages))]
    for name in ("decode alone, by DALI", "read and probe alone"):
        if name in rates:
            record.fact(f"time of '{name}', as a share of all", whole / rates[name])


class Watched:
    """A DALI pipeline that notes where the batches are that it gives."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.pointers: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def outputs(self, **how: Any) -> Any:
        given = self._pipe.outputs(**how)
        self.pointers.append(int(given[0].as_tensor().data_ptr()))
        return given


def _decode_alone(requests: list[ClipRequest], batch: int, seconds: float) -> float:
    """Clips per second of DALI's decoder, whole frames, files in memory; two batches under way, as in the loader."""
    where = device()
    pipe = frames_only(
        decoder(),
        batch_size=batch,
        num_threads=os.cpu_count() or 1,
        device_id=where.index if where.type == "cuda" else None,
        prefetch_queue_depth=1,
    )
    pipe.build()
    files = {request.path: np.fromfile(str(request.path), np.uint8) for request in requests}
    endless = itertools.cycle(requests)

    def feed() -> None:
        some = list(itertools.islice(endless, batch))
        pipe.feed_input("encoded", [files[request.path] for request in some])
        pipe.feed_input("index", [np.sort(request.frames[0]) for request in some])
        pipe.schedule_run()

    feed()
    feed()
    pipe.outputs()
    start, done = now(where), 0
    while time.perf_counter() - start < seconds or not done:
        feed()
        pipe.outputs()
        done += batch
    return done / (now(where) - start)


def _probe_alone(requests: list[ClipRequest], seconds: float) -> float:
    """Files per second that are read and looked at, in as many threads as the loader has."""

    def look(path: Path) -> None:
        probe(path.read_bytes())

    done, start = 0, time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        while time.perf_counter() - start < seconds or not done:
            done += sum(1 for _ in pool.map(look, [request.path for request in requests[:64]]))
    return done / (time.perf_counter() - start)


def _inside(clips: torch.Tensor, patch: Patch) -> torch.Tensor:
    """The pixels of a clip (T, S, S, 3) that are certainly in a patch: (T, h, w, 3)."""
    size = clips.shape[1]
    top, left = int(patch.top * size) + 1, int(patch.left * size) + 1
    bottom, right = int((patch.top + patch.height) * size) - 1, int((patch.left + patch.width) * size) - 1
    return clips[:, top:bottom, left:right]


def _clip(record: Record) -> Clip:
    return Clip(frames=8, size=64) if record.quick else Clip(frames=16, size=224)


def _data() -> Data:
    return Data.model_validate({"decoder": usual_decoder()})


def _plain(record: Record, clip: Clip) -> list[ClipRequest]:
    return [evaluation_request(path.name, path, probe(path), clip=clip) for path in clips_like_ssv2(record)]
