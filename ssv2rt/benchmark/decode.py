"""How fast videos become clips: beside other libraries, beside the limit that decoding sets, and what the time goes into."""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssv2rt.benchmark.peers import FLOAT, peers
from ssv2rt.benchmark.rounds import Contestant, machine, now, race
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, versions
from ssv2rt.core.recipes import Clip, Data
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import clip_rng, evaluation_request, pick_frames
from ssv2rt.pipelines.requests import ClipRequest
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.video import crops as windows
from ssv2rt.video.container import CLIP_ERRORS, VideoLocation, open_video, video_stream
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import VideoInfo, probe
from ssv2rt.video.seek import frames_needed

logger = logging.getLogger(__name__)


BATCH = {"cpu": 8, "cuda": 32}
"""Clips in a batch of a loader, by the kind of its device; several decoders of a GPU want more work at once."""
LIMIT = "FFmpeg, decoding alone"
OURS = "ssv2rt"


def benchmark_decode(videos: Sequence[Path], *, threads: int, clips: int, rounds: int) -> dict[str, Any]:
    """Clips per second of 16 x 224 x 224 random resized crops, from these videos to the GPU, or without one to memory.

    Args:
        videos: of any kind; those that cannot be read are left out.
        threads: for each contestant; 0 for one a core.
        clips: how many each contestant makes in a round.
        rounds: timed ones.

    Raises:
        UserError: none of the videos can be read.
    """
    clip, threads = Clip(frames=16, size=224), threads or cores()
    known = [(path, info) for path in videos if (info := _probed(path))]
    if not known:
        raise UserError("none of the videos can be read; give a folder of videos, or none for synthetic ones")
    requests = [_request(*known[at % len(known)], clip, at) for at in range(clips)]
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # clips are made side by side: one thread each is fastest for all
    try:
        contestants, absent = _contestants(requests, clip, threads, choose_device())
        rates = race(contestants, units=clips, rounds=rounds)
        costs = _costs(requests[: min(16, max(8, clips // 4))], clip, rounds)
    finally:
        torch.set_num_threads(before)
    ours = rates[OURS].median
    others = [name for name in rates if " + torch" in name]
    best = max(others, key=lambda name: rates[name].median)
    usual = max((name for name in others if FLOAT in name), key=lambda name: rates[name].median)
    return {
        "machine": machine(),
        "versions": versions(),
        "videos": {"count": len(known), "first": _describe(*known[0])},
        "clip": f"{clip.frames} x {clip.size} x {clip.size}",
        "threads": threads,
        "device": str(choose_device()),
        "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "absent": absent,
        "best_peer": best,
        "times_best_peer": ours / rates[best].median,
        "best_peer_in_float": usual,
        "times_best_peer_in_float": ours / rates[usual].median,
        "share_of_limit": ours / rates[LIMIT].median,
        "milliseconds_per_clip": costs,
        "times_one_view": {"2x3": costs.pop("2x3 views") / costs["one view"]},
    }


def _contestants(
    requests: list[ClipRequest], clip: Clip, threads: int, device: torch.device
) -> tuple[dict[str, Contestant], dict[str, str]]:
    def side_by_side(work: Callable[[ClipRequest], object]) -> Contestant:
        def run() -> None:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(work, requests):
                    pass
            now(device)

        return run

    def through(decoder: str) -> Contestant:
        batch = BATCH[device.type]
        data = Data.model_validate({"decoder": decoder, "threads": threads})
        loader = ClipLoader(clip=clip, batch=batch, data=data, device=device, measured=logger.info)

        def run() -> None:
            for made in loader.batches(in_batches(iter(requests), batch)):
                assert not made.bad
            now(device)

        return run

    alone = {"DALI's decoder": "dali"} if device.type == "cpu" else {"NVDEC alone": "nvdec", "PyAV alone": "pyav"}
    contestants = {OURS: through("auto")} | {f"{OURS}, {name}": through(decoder) for name, decoder in alone.items()}
    absent = {}
    for name, peer in peers().items():
        if isinstance(peer, str):
            absent[name] = peer
        else:
            contestants[name] = side_by_side(lambda request, peer=peer: peer(request, clip.size).to(device))  # type: ignore[misc]
    contestants[LIMIT] = side_by_side(lambda request: decode_only(request.path))
    return contestants, absent


def decode_only(path: VideoLocation) -> int:
    """Decodes every frame and looks at none."""
    with open_video(path) as container:
        stream = video_stream(container)
        stream.thread_type = "NONE"
        return sum(1 for _ in container.decode(stream))


def _costs(requests: list[ClipRequest], clip: Clip, rounds: int) -> dict[str, float]:
    """Milliseconds of processor time that a clip by PyAV costs, by what they are spent on; medians of the rounds."""
    batch = BATCH["cpu"]
    loader = ClipLoader(clip=clip, batch=batch, data=Data(threads=1), device=torch.device("cpu"))
    views = clip.model_copy(update={"views": (2, 3), "center_crop": 1.0})

    def read(request: ClipRequest) -> None:
        request.path.read_bytes()

    def decode(request: ClipRequest) -> None:
        with open_video(request.path) as container:
            stream = video_stream(container)
            for _ in frames_needed(container, stream, request.video_frames, np.sort(request.frames[0])):
                pass

    def of_views(settings: Clip) -> Callable[[ClipRequest], None]:
        made = {r.path: evaluation_request(r.id, r.path, probe(r.path), clip=settings) for r in requests}
        return lambda request: _nothing(decode_clips(request.path, made[request.path], size=settings.size))

    works = {
        "read": read,
        "decode": decode,
        "decode and cut": lambda request: _nothing(decode_clips(request.path, request, size=clip.size)),
        "one view": of_views(views.one_view()),
        "2x3 views": of_views(views),
    }
    spent: dict[str, list[float]] = {name: [] for name in (*works, "in all")}
    for _ in range(rounds):
        for name, work in works.items():
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


def _nothing(result: object) -> None:
    """Drops a result."""


def _probed(path: Path) -> VideoInfo | None:
    try:
        return probe(path)
    except CLIP_ERRORS:
        return None


def _request(path: Path, info: VideoInfo, clip: Clip, number: int) -> ClipRequest:
    """A training clip, as published SSv2 recipes cut them: 40% to all of the frame."""
    rng = clip_rng(0, number, str(path))
    frames = pick_frames(info, clip, rng=rng)
    window = windows.random_resized(
        width=info.width, height=info.height, scale=(0.4, 1.0), ratio=(3 / 4, 4 / 3), rng=rng
    )
    return ClipRequest(f"{number}", path, frames[None], (window,), (info.width, info.height), info.frames)


def _describe(path: Path, info: VideoInfo) -> str:
    return f"{path.name}: {info.codec} {info.width}x{info.height}, {info.frames} frames, {info.key_frames} key"


def clips_of(folder: Path | None) -> list[Path]:
    """The videos in and below a folder, or the one video; by default synthetic ones coded as SSv2's are."""
    from ssv2rt.dataset.listing import is_video
    from ssv2rt.dataset.prepare import like_ssv2

    folder = folder or like_ssv2()
    if folder.is_file():
        return [folder]
    found = [Path(top) / name for top, _, names in os.walk(folder) for name in sorted(names) if is_video(name)]
    if not found:
        raise UserError(f"no videos in '{folder}'; give a video or a folder of videos")
    return list(itertools.islice(sorted(found), 200))
