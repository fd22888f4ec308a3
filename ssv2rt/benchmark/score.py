"""How fast scoring is from end to end: beside its slowest stage alone, and beside a plain script."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

from ssv2rt.benchmark.engine import build_untested
from ssv2rt.benchmark.in_pytorch import CLASSES, InPyTorch, network_of, without_engine
from ssv2rt.benchmark.peers import FLOAT, peers
from ssv2rt.benchmark.rounds import Contestant, machine, now, race
from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, versions
from ssv2rt.core.recipes import Clip, Data, Model
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.engines.backends.registry import backend, choose_backend, load_runner
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import INFO, Bundle, open_bundle
from ssv2rt.engines.source import source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, evaluation_request
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.scoring.journal import journal_of
from ssv2rt.scoring.supervisor import Supervisor
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import WorkerSettings
from ssv2rt.video.probe import probe

logger = logging.getLogger(__name__)


ALL, DECODE, ENGINE = "ssv2rt score", "decoding alone", "engine alone"
PLAIN = "plain script: PyAV, torch, fp32"
PLAIN_LAYOUT = "plain script, in our layout"
"""Bytes in channels-last-3d go into the network, not contiguous floats: the better half of what a script can do."""
_LINKS = 10_000
"""Names of one file; file systems allow so many."""
BATCH = {"cpu": 8, "cuda": 32}
"""Clips in a batch of the engine, by the kind of device."""
_PLAIN_CLIPS = 4
"""Clips of a turn of the plain script, which is slow."""


def benchmark_score(
    model: Model, clip: Clip, videos: Sequence[Path], *, count: int, rounds: int, names: int
) -> dict[str, Any]:
    """Videos per second, with an engine of a network with random weights: in int8; in fp16 on a GPU for which there is no
    int8; and by PyTorch where no engine can be built for the GPU.

    Args:
        model: the network.
        clip: its clips.
        videos: taken again and again.
        count: videos in a turn.
        rounds: timed ones.
        names: files in the folder for which the time to the first row is measured; 0 leaves that out.

    Raises:
        UserError: the videos cannot be read.
    """
    network, device = network_of(model), choose_device()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if engine := _choose_engine(device):
            bundle = _built(network, model.name, clip, folder, *engine, batch=BATCH[device.type])
            settings = WorkerSettings(
                "ssv2rt.scoring.worker:make_scorer",
                {"bundle": str(bundle.path), "top_k": 5, "clip": clip, "data": Data()},
            )
            runner = load_runner(bundle)
        else:
            bundle = without_engine(model, clip, BATCH[device.type], device)
            settings = WorkerSettings(
                "ssv2rt.benchmark.in_pytorch:make_scorer", {"model": model, "clip": clip, "batch": BATCH[device.type]}
            )
            runner, names = InPyTorch(network_of(model), device), 0  # the command takes engines only
        where = device if bundle.info.target.startswith("sm") else torch.device("cpu")
        network = network.to(device)
        with Supervisor([settings], timeout=600) as supervisor:
            rates = race(
                {
                    ALL: _whole(supervisor, videos, count),
                    DECODE: _decoding(videos, clip, bundle.info.batch.best, count, where),
                    ENGINE: _engine(runner, clip, bundle.info.batch.best, count, where),
                    PLAIN: _plain(_in_floats(network), f"PyAV + torch{FLOAT}", videos, clip, count, device),
                    PLAIN_LAYOUT: _plain(network, "PyAV + torch", videos, clip, count, device),
                },
                units=count,
                rounds=rounds,
            )
        first = _first_row(bundle, videos[0], folder / "names", names) if names else None
    median = {name: rate.median for name, rate in rates.items()}
    slowest = min((DECODE, ENGINE), key=lambda name: median[name])
    return {
        "model": model.name,
        "clip": f"{clip.frames} x {clip.size} x {clip.size}",
        "engine": f"{bundle.info.backend}, {bundle.info.precision}",
        "videos": {"first": videos[0].name, "count": len(videos)},
        "videos_per_second": {name: asdict(rate) for name, rate in rates.items()},
        "slowest_stage": slowest,
        "share_of_slowest": median[ALL] / median[slowest],
        "share_of_both_on_the_same_cores": median[ALL] * (1 / median[DECODE] + 1 / median[ENGINE]),
        "times_plain": median[ALL] / median[PLAIN],
        "times_plain_in_our_layout": median[ALL] / median[PLAIN_LAYOUT],
        "start": first,
        "machine": machine(),
        "versions": versions(),
    }


def _choose_engine(device: torch.device) -> tuple[str, str] | None:
    """The backend and the precision of the fastest engine that can be built for a device; None if none can."""
    for precision in ("int8", "fp16"):
        name = choose_backend(precision)
        program = backend(name)
        if device.type == "cuda" and name == "openvino":
            continue
        if not (program.unavailable_reason() or program.cannot_build_reason()):
            return name, precision
    return None


def _built(
    network: ClipModel, model: str, clip: Clip, folder: Path, program: str, precision: str, *, batch: int
) -> Bundle:
    source = source_of_model(network, model, tuple(str(number) for number in range(CLASSES)), clip)
    bundle = build_untested(source, program, precision, folder, batch=batch, threads=0)
    write_json(bundle.path / INFO, bundle.info.model_dump(mode="json"))
    return open_bundle(bundle.path)


def _whole(supervisor: Supervisor, videos: Sequence[Path], count: int) -> Contestant:
    def turn() -> None:
        tasks = ((number, Video(str(path), path)) for number, path in enumerate(islice(cycle(videos), count)))
        for rows in supervisor.score(tasks):
            if bad := [row for _, row in rows if row["status"] != "ok"]:
                raise UserError(
                    f"'{bad[0]['path']}' cannot be scored: {bad[0]['status']}; give videos that can be read"
                )

    return turn


def _decoding(videos: Sequence[Path], clip: Clip, batch: int, count: int, device: torch.device) -> Contestant:
    loader = ClipLoader(clip=clip, batch=batch, data=Data(), device=device)

    def turn() -> None:
        requests: Iterator[VideoRequest] = (
            VideoRequest(str(number), path, clip) for number, path in enumerate(islice(cycle(videos), count))
        )
        for _ in loader.batches(in_batches(requests, batch)):
            pass
        now(device)

    return turn


def _engine(runner: Runner, clip: Clip, batch: int, count: int, device: torch.device) -> Contestant:
    """With as many batches under way as scoring has."""
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8).to(device)

    def turn() -> float:
        start, turns = time.perf_counter(), max(1, count // batch)
        waiting: deque[Callable[[], Outputs]] = deque()
        for _ in range(turns):
            waiting.append(runner.start(clips))
            if len(waiting) >= runner.in_flight:
                waiting.popleft()()
        while waiting:
            waiting.popleft()()
        return (time.perf_counter() - start) * count / (turns * batch)

    return turn


def _in_floats(network: ClipModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network behind its normalisation: float (N, 3, T, S, S) to logits."""
    return lambda clips: network.head(network.backbone(clips))


def _plain(
    network: Callable[[torch.Tensor], torch.Tensor],
    peer: str,
    videos: Sequence[Path],
    clip: Clip,
    count: int,
    device: torch.device,
) -> Contestant:
    """One video after the other: decoded to RGB by PyAV, resized by torch, and through the network in fp32."""
    reader = peers()[peer]
    assert callable(reader)
    requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in videos[:_PLAIN_CLIPS]]

    def turn() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for request in islice(cycle(requests), _PLAIN_CLIPS):
                network(reader(request, clip.size)[None].to(device))
        return (now(device) - start) * count / _PLAIN_CLIPS

    return turn


def _first_row(bundle: Bundle, video: Path, folder: Path, names: int) -> dict[str, Any]:
    """Seconds from the start of the command to its first row, on a folder of many names, with the engine in the cache."""
    logger.info(f"making a folder of {names:,} names")
    folder.mkdir()
    for number in range(names):
        first = folder / f"{number - number % _LINKS}.webm"
        if number % _LINKS:
            os.link(first, folder / f"{number}.webm")
        else:
            shutil.copy(video, first)
    out = folder.parent / "p.csv"
    command = [sys.executable, "-m", "ssv2rt", "score", str(folder), "--engine", str(bundle.path), "--out", str(out)]
    environment = {**os.environ, "SSV2RT_CACHE": str(cache_folder())}
    seconds = []
    for _ in range(2):  # the first one fills the cache
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--overwrite"], env=environment, stderr=subprocess.DEVNULL)
        journal = journal_of(out)
        while process.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        seconds.append(time.perf_counter() - start)
        process.terminate()
        process.wait()
        journal.unlink(missing_ok=True)
    return {"names": names, "seconds_to_first_row": seconds[-1]}
