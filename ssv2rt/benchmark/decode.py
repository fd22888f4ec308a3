"""Benchmark of decoding videos into clips: throughput, other libraries, the limit of decoding alone, and cost per stage."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssv2rt.benchmark.peers import FLOAT, peers
from ssv2rt.benchmark.rounds import Workload, describe_machine, run_rounds, synchronized_time
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, versions
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import clip_rng, evaluation_request, pick_frames
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.video.container import CLIP_ERRORS, open_video, video_stream
from ssv2rt.video.crops import random_resized_crop
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoInfo, probe
from ssv2rt.video.seek import frames_needed
from ssv2rt.video.storage import VideoLocation

logger = logging.getLogger(__name__)


BATCH = {"cpu": 8, "cuda": 32}
"""Batch size of a loader by device type. A GPU has several decoders, which need more clips at once."""
LIMIT = "FFmpeg, decoding alone"
OURS = "ssv2rt"


def benchmark_decode(videos: Sequence[Path], *, threads: int, clips: int, rounds: int) -> dict[str, Any]:
    """Measures random resized crops of 16 x 224 x 224 in clips per second, up to GPU memory, or to RAM without a GPU.

    Args:
        videos: of any format; those that cannot be read are left out.
        threads: for each workload; 0 for one per core.
        clips: number of clips that each workload makes in a round.
        rounds: number of timed rounds.

    Raises:
        UserError: none of the videos can be read.
    """
    clip, threads = Clip(frames=16, size=224), threads or cores()
    readable = [(path, info) for path in videos if (info := _probe_or_none(path))]
    if not readable:
        raise UserError("none of the videos can be read; give a folder of videos, or no folder to use synthetic videos")
    requests = [training_crop(*readable[number % len(readable)], clip, number) for number in range(clips)]
    with one_torch_thread():
        workloads, absent = _workloads(requests, clip, threads, choose_device())
        rates = run_rounds(workloads, units=clips, rounds=rounds)
        costs = _cost_per_stage(requests[: min(16, max(8, clips // 4))], clip, rounds)
    ours = rates[OURS].median
    others = [name for name in rates if " + torch" in name]
    best = max(others, key=lambda name: rates[name].median)
    best_in_float = max((name for name in others if FLOAT in name), key=lambda name: rates[name].median)
    return {
        "machine": describe_machine(),
        "versions": versions(),
        "videos": {"count": len(readable), "first": _describe(*readable[0])},
        "clip": f"{clip.frames} x {clip.size} x {clip.size}",
        "threads": threads,
        "device": str(choose_device()),
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "absent": absent,
        "best_peer": best,
        "times_best_peer": ours / rates[best].median,
        "best_peer_in_float": best_in_float,
        "times_best_peer_in_float": ours / rates[best_in_float].median,
        "share_of_limit": ours / rates[LIMIT].median,
        "milliseconds_per_clip": costs,
        "times_one_view": {"2x3": costs.pop("2x3 views") / costs["one view"]},
    }


def _workloads(
    requests: list[ClipRequest], clip: Clip, threads: int, device: torch.device
) -> tuple[dict[str, Workload], dict[str, str]]:
    single_decoders = (
        {"DALI's decoder": "dali"} if device.type == "cpu" else {"NVDEC alone": "nvdec", "PyAV alone": "pyav"}
    )
    workloads = {OURS: with_loader(requests, clip, threads, device)} | {
        f"{OURS}, {name}": with_loader(requests, clip, threads, device, decoder=decoder)
        for name, decoder in single_decoders.items()
    }
    of_peers, absent = with_peers(requests, clip, threads, device)
    workloads |= of_peers
    workloads[LIMIT] = _in_thread_pool(requests, lambda request: decode_all_frames(request.path), threads, device)
    return workloads, absent


def with_loader(
    requests: list[ClipRequest], clip: Clip, threads: int, device: torch.device, *, decoder: str = "auto"
) -> Workload:
    """Makes the clips with this package's loader."""
    batch = BATCH[device.type]
    data = Data.model_validate({"decoder": decoder, "threads": threads})
    loader = ClipLoader(clip=clip, batch=batch, data=data, device=device, measured=logger.info)

    def run() -> None:
        for batch_of_clips in loader.batches(in_batches(iter(requests), batch)):
            assert not batch_of_clips.bad
        synchronized_time(device)

    return run


def with_peers(
    requests: list[ClipRequest], clip: Clip, threads: int, device: torch.device
) -> tuple[dict[str, Workload], dict[str, str]]:
    """Makes the clips with each of the other libraries; and why some cannot be used, by name."""
    found: dict[str, Workload] = {}
    absent: dict[str, str] = {}
    for name, peer in peers().items():
        if isinstance(peer, str):
            absent[name] = peer
        else:
            found[name] = _in_thread_pool(
                requests,
                lambda request, peer=peer: peer(request, clip.size).to(device),  # type: ignore[misc]
                threads,
                device,
            )
    return found, absent


def _in_thread_pool(
    requests: list[ClipRequest], work: Callable[[ClipRequest], object], threads: int, device: torch.device
) -> Workload:
    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(work, requests):
                pass
        synchronized_time(device)

    return run


def decode_all_frames(path: VideoLocation) -> int:
    """Decodes every frame without converting it; returns the number of frames."""
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"
        return sum(1 for _ in container.decode(stream))


def _cost_per_stage(requests: list[ClipRequest], clip: Clip, rounds: int) -> dict[str, float]:
    """CPU milliseconds per clip decoded by PyAV, by stage; medians over the rounds."""
    batch = BATCH["cpu"]
    loader = ClipLoader(clip=clip, batch=batch, data=Data(threads=1), device=torch.device("cpu"))
    views = clip.model_copy(update={"views": (2, 3), "center_crop": 1.0})

    def read(request: ClipRequest) -> None:
        request.path.read_bytes()

    def decode(request: ClipRequest) -> None:
        for _ in frames_needed(request.path, request.video_frames, np.sort(request.frames[0])):
            pass

    def of_views(settings: Clip) -> Callable[[ClipRequest], None]:
        made = {r.path: evaluation_request(r.id, r.path, probe(r.path), clip=settings) for r in requests}
        return lambda request: _discard(decode_clips(request.path, made[request.path], size=settings.size))

    stages = {
        "read": read,
        "decode": decode,
        "decode and cut": lambda request: _discard(decode_clips(request.path, request, size=clip.size)),
        "one view": of_views(views.one_view()),
        "2x3 views": of_views(views),
    }
    spent: dict[str, list[float]] = {name: [] for name in (*stages, "in all")}
    for _ in range(rounds):
        for name, work in stages.items():
            start = time.process_time()
            for request in requests:
                work(request)
            spent[name].append(time.process_time() - start)
        start = time.process_time()
        for _ in loader.batches(in_batches(iter(requests), batch)):
            pass
        spent["in all"].append(time.process_time() - start)
    cost = {name: 1000 * float(np.median(values)) / len(requests) for name, values in spent.items()}
    return {
        "read": cost["read"],
        "decode": cost["decode"],
        "cut, scale, convert": cost["decode and cut"] - cost["decode"],
        "hand over": cost["in all"] - cost["decode and cut"] - cost["read"],
        "one view": cost["one view"],
        "2x3 views": cost["2x3 views"],
    }


def _discard(result: object) -> None:
    """Makes an expression with a result usable where None is expected."""


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """In this block torch uses one thread for each of ours: clips are decoded side by side, for which that is fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe_or_none(path: Path) -> VideoInfo | None:
    try:
        return probe(path)
    except CLIP_ERRORS:
        return None


def training_crop(path: Path, info: VideoInfo, clip: Clip, number: int) -> ClipRequest:
    """A training clip with the crop of published SSv2 recipes: 40% to 100% of the frame.

    What is drawn depends on the number alone, so a copy of a video with other frames gets the same parts of the picture.
    """
    rng = clip_rng(0, number, "benchmark")
    frames = pick_frames(info, clip, rng=rng)
    crop = random_resized_crop(width=info.width, height=info.height, scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3), rng=rng)
    return ClipRequest(f"{number}", path, frames[None], (crop,), (info.width, info.height), info.frames)


def _describe(path: Path, info: VideoInfo) -> str:
    return f"{path.name}: {info.codec} {info.width}x{info.height}, {info.frames} frames, {info.key_frames} key"


def benchmark_videos(folder: Path | None) -> list[Path]:
    """A single video, or up to 200 videos in a folder and its subfolders; by default synthetic ones, encoded like SSv2."""
    from ssv2rt.dataset.listing import is_video
    from ssv2rt.dataset.prepare import ssv2_like_set

    folder = folder or ssv2_like_set()
    if folder.is_file():
        return [folder]
    found = [Path(top) / name for top, _, names in os.walk(folder) for name in sorted(names) if is_video(name)]
    if not found:
        raise UserError(f"no videos in '{folder}'; give a video or a folder of videos")
    return list(itertools.islice(sorted(found), 200))
