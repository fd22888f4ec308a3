"""Benchmark of scoring end to end, compared with each stage alone and with a plain script."""

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

from ssv2rt.benchmark.engine import build_without_checks
from ssv2rt.benchmark.in_pytorch import CLASSES, bundle_without_engine, random_network, runner_of
from ssv2rt.benchmark.peers import FLOAT, peers
from ssv2rt.benchmark.rounds import Workload, describe_machine, run_rounds, synchronized_time
from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.errors import UserError
from ssv2rt.core.hardware import choose_device, versions
from ssv2rt.core.recipes import Clip, Data, Model
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.core.worker_pool import WorkerSettings
from ssv2rt.engines.backends.registry import backend, choose_backend, load_runner
from ssv2rt.engines.base import Outputs, Runner
from ssv2rt.engines.bundle import INFO, Bundle, open_bundle
from ssv2rt.engines.source import source_of_model
from ssv2rt.models.clip_model import ClipModel
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import VideoRequest, evaluation_request
from ssv2rt.pipelines.samplers import in_batches
from ssv2rt.scoring.journal import journal_path
from ssv2rt.scoring.supervisor import Supervisor
from ssv2rt.scoring.video_sources import Video
from ssv2rt.video.probe import probe

logger = logging.getLogger(__name__)


ALL, DECODE, ENGINE = "ssv2rt score", "decoding alone", "engine alone"
PLAIN = "plain script: PyAV, torch, fp32"
PLAIN_LAYOUT = "plain script, in our layout"
"""Feeds the network uint8 clips in channels_last_3d instead of contiguous floats: about the best that a script can do."""
_LINKS_PER_FILE = 10_000
"""Hard links of one file; file systems limit their number."""
BATCH = {"cpu": 8, "cuda": 32}
"""Batch size of the engine, by device type."""
_PLAIN_CLIPS = 4
"""Clips that the plain script, which is slow, makes in a round."""


def benchmark_score(
    model: Model, clip: Clip, videos: Sequence[Path], *, count: int, rounds: int, names: int
) -> dict[str, Any]:
    """Measures scoring in videos per second, with a network of random weights.

    The engine is in int8 if one can be built for this machine, else in fp16. If no engine can be built, PyTorch is used.

    Args:
        model: the network.
        clip: shape and views of its clips.
        videos: repeated as often as needed.
        count: videos in a round.
        rounds: number of timed rounds.
        names: number of files in the folder for measuring the time to the first row; 0 skips that.

    Raises:
        UserError: the videos cannot be read.
    """
    network, device = random_network(model), choose_device()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if engine := _choose_engine(device):
            bundle = _build_engine(network, model.name, clip, folder, *engine, batch=BATCH[device.type])
            settings = WorkerSettings(
                "ssv2rt.scoring.worker:make_scorer",
                {"bundle": str(bundle.path), "top_k": 5, "clip": clip, "data": Data()},
            )
            runner = load_runner(bundle)
        else:
            bundle = bundle_without_engine(model, clip, BATCH[device.type], device)
            settings = WorkerSettings(
                "ssv2rt.benchmark.in_pytorch:make_scorer", {"model": model, "clip": clip, "batch": BATCH[device.type]}
            )
            runner, names = runner_of(random_network(model), device), 0  # `ssv2rt score` accepts engines only
        where = device if bundle.info.on_gpu else torch.device("cpu")
        network = network.to(device)
        with Supervisor([settings], timeout=600) as supervisor:
            rates = run_rounds(
                {
                    ALL: _score_workload(supervisor, videos, count),
                    DECODE: _decode_workload(videos, clip, bundle.info.batch.best, count, where),
                    ENGINE: _engine_workload(runner, clip, bundle.info.batch.best, count, where),
                    PLAIN: _plain_script_workload(
                        _on_normalized_clips(network), f"PyAV + torch{FLOAT}", videos, clip, count, device
                    ),
                    PLAIN_LAYOUT: _plain_script_workload(network, "PyAV + torch", videos, clip, count, device),
                },
                units=count,
                rounds=rounds,
            )
        first = _time_to_first_row(bundle, videos[0], folder / "names", names) if names else None
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
        "machine": describe_machine(),
        "versions": versions(),
    }


def _choose_engine(device: torch.device) -> tuple[str, str] | None:
    """Backend and precision of the fastest engine that can be built for a device; None if there is none."""
    for precision in ("int8", "fp16"):
        name = choose_backend(precision)
        program = backend(name)
        if device.type == "cuda" and name == "openvino":
            continue
        if not (program.unavailable_reason() or program.cannot_build_reason()):
            return name, precision
    return None


def _build_engine(
    network: ClipModel, model: str, clip: Clip, folder: Path, program: str, precision: str, *, batch: int
) -> Bundle:
    source = source_of_model(network, model, tuple(str(number) for number in range(CLASSES)), clip)
    bundle = build_without_checks(source, program, precision, folder, batch=batch, threads=0)
    write_json(bundle.path / INFO, bundle.info.model_dump(mode="json"))
    return open_bundle(bundle.path)


def _score_workload(supervisor: Supervisor, videos: Sequence[Path], count: int) -> Workload:
    def turn() -> None:
        tasks = ((number, Video(str(path), path)) for number, path in enumerate(islice(cycle(videos), count)))
        for rows in supervisor.score(tasks):
            if bad := [row for _, row in rows if row["status"] != "ok"]:
                raise UserError(
                    f"'{bad[0]['path']}' cannot be scored: {bad[0]['status']}; give videos that can be read"
                )

    return turn


def _decode_workload(videos: Sequence[Path], clip: Clip, batch: int, count: int, device: torch.device) -> Workload:
    loader = ClipLoader(clip=clip, batch=batch, data=Data(), device=device)

    def turn() -> None:
        requests: Iterator[VideoRequest] = (
            VideoRequest(str(number), path, clip) for number, path in enumerate(islice(cycle(videos), count))
        )
        for _ in loader.batches(in_batches(requests, batch)):
            pass
        synchronized_time(device)

    return turn


def _engine_workload(runner: Runner, clip: Clip, batch: int, count: int, device: torch.device) -> Workload:
    """Runs the engine with as many batches in flight as scoring has."""
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8).to(device)

    def turn() -> float:
        start, turns = time.perf_counter(), max(1, count // batch)
        in_flight: deque[Callable[[], Outputs]] = deque()
        for _ in range(turns):
            in_flight.append(runner.start(clips))
            if len(in_flight) >= runner.in_flight:
                in_flight.popleft()()
        while in_flight:
            in_flight.popleft()()
        return (time.perf_counter() - start) * count / (turns * batch)

    return turn


def _on_normalized_clips(network: ClipModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """The network without its input normalization: float (N, 3, T, S, S) to logits."""
    return lambda clips: network.head(network.backbone(clips))


def _plain_script_workload(
    network: Callable[[torch.Tensor], torch.Tensor],
    peer: str,
    videos: Sequence[Path],
    clip: Clip,
    count: int,
    device: torch.device,
) -> Workload:
    """One video after another: decoded to RGB by PyAV, resized by torch, and run through the network in fp32."""
    reader = peers()[peer]
    assert callable(reader)
    requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in videos[:_PLAIN_CLIPS]]

    def turn() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for request in islice(cycle(requests), _PLAIN_CLIPS):
                network(reader(request, clip.size)[None].to(device))
        return (synchronized_time(device) - start) * count / _PLAIN_CLIPS

    return turn


def _time_to_first_row(bundle: Bundle, video: Path, folder: Path, names: int) -> dict[str, Any]:
    """Seconds from the start of `ssv2rt score` to its first row, on a folder of many files and with a warm engine cache."""
    logger.info(f"making a folder of {names:,} files")
    folder.mkdir()
    for number in range(names):
        first = folder / f"{number - number % _LINKS_PER_FILE}.webm"
        if number % _LINKS_PER_FILE:
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
        journal = journal_path(out)
        while process.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") > 1):
            time.sleep(0.01)
        seconds.append(time.perf_counter() - start)
        process.terminate()
        process.wait()
        journal.unlink(missing_ok=True)
    return {"names": names, "seconds_to_first_row": seconds[-1]}
