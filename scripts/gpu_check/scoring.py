"""Videos to rows, by the processes that `ssv2rt score` runs: good and bad ones, and how fast.

The engine is the fastest that the section `engines` has built, or one of the first backend that is here, or else the
network in PyTorch.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from gpu_check import engines, measure
from gpu_check.decode_speed import pace
from gpu_check.record import Missing, Record
from gpu_check.runners import TorchRunner, fast, half, in_flight
from gpu_check.subject import MOST, Subject
from gpu_check.videos import clips_like_ssv2
from ssv2rt.core.hardware import gpu_architecture
from ssv2rt.core.recipes import BatchProfile, Clip, Data
from ssv2rt.engines.backends.registry import load_runner
from ssv2rt.engines.base import Runner
from ssv2rt.engines.bundle import Bundle, BundleInfo, open_bundle
from ssv2rt.pipelines.loader import ClipLoader
from ssv2rt.pipelines.request_source import evaluation_request
from ssv2rt.scoring.predictor import Predictor
from ssv2rt.scoring.scorer import Scorer
from ssv2rt.scoring.supervisor import Supervisor
from ssv2rt.scoring.video_sources import Video
from ssv2rt.scoring.worker import WorkerSettings
from ssv2rt.video.container import CLIP_ERRORS, OK, reason_of
from ssv2rt.video.decode import decode_clips
from ssv2rt.video.probe import probe

PYTORCH = "PyTorch in place of an engine"
Rows = dict[str, dict[str, Any]]
"""Rows by path."""


def rows(record: Record) -> None:
    """Bad files among good ones: a row each, and the good ones' rows are what they are without them."""
    settings, _ = _worker(record)
    good = [str(path) for path in clips_like_ssv2(record)[: 11 if record.quick else 43]]
    bad = _bad_files(record, Path(good[0]))
    mixed = list(good)
    for number, path in enumerate(bad):
        mixed.insert(3 * number + 1, str(path))
    with Supervisor([settings], timeout=60) as supervisor:
        alone = _scored(supervisor, good)
        among = _scored(supervisor, mixed)
        again = _scored(supervisor, good)
        restarts = supervisor.restarts
    record.fact("good files", len(good))
    record.fact("processes that were started anew", restarts)
    record.check("every video has a row", set(among) == set(mixed), f"{len(among)} rows for {len(mixed)} videos")
    fine = [path for path in good if alone[path]["status"] == OK]
    record.check("good files are scored", len(fine) == len(good), f"{len(fine)} of {len(good)}")
    for name, other in (("among bad ones", among), ("once more", again)):
        same = [path for path in good if other.get(path) == alone[path]]
        record.check(f"good files {name} have the same rows, to the last bit", len(same) == len(good), f"{len(same)}")
    record.check("no process was ended by a video", restarts == 0, f"{restarts} were")
    clip = Subject(record).clip
    for path in bad:
        status, by_pyav = among.get(str(path), {}).get("status", "no row"), _by_pyav(path, clip)
        record.row("bad files", file=path.name, status=status, by_pyav=by_pyav)
        if by_pyav != OK:
            record.check(f"{path.name}, which PyAV refuses, has an error row", status.startswith("error"), status)


def speed(record: Record) -> None:
    """Videos per second from end to end, beside decoding alone and the engine alone."""
    settings, bundle = _worker(record)
    where, clip, batch = measure.device(), bundle.info.clip, bundle.info.batch.best
    paths = clips_like_ssv2(record)
    seconds = record.moment(record.left() / 6)
    with Supervisor([settings], timeout=60) as supervisor:
        start = time.perf_counter()
        _scored(supervisor, [str(path) for path in paths[:1]])
        record.fact("seconds to the first row", time.perf_counter() - start)
        probe_run = time.perf_counter()
        _scored(supervisor, [str(path) for path in itertools.islice(itertools.cycle(paths), 4 * batch)])
        count = max(6 * batch, int(4 * batch / (time.perf_counter() - probe_run) * 2 * seconds))
        start = time.perf_counter()
        done = sum(1 for _ in _answers(supervisor, itertools.islice(itertools.cycle(paths), count)))
        whole = done / (time.perf_counter() - start)
    requests = [evaluation_request(path.name, path, probe(path), clip=clip) for path in paths]
    loader = ClipLoader(clip=clip, batch=batch, data=Data(), device=_device(bundle, where))
    decoding = pace(loader, requests, batch, seconds=seconds).clips
    if loader._decoder == "mixed":
        record.note(loader.measure(requests[:batch]))
        record.fact("fair --cpu-share for `ssv2rt score`", loader.share)
    runner = _runner(record, bundle)
    clips = torch.randint(0, 256, (batch, clip.frames, clip.size, clip.size, 3), dtype=torch.uint8)
    engine = in_flight(runner, clips.to(_device(bundle, where)), seconds)
    record.row("videos per second", what="from end to end", rate=whole)
    record.row("videos per second", what="decoding alone", rate=decoding)
    record.row("videos per second", what="the engine alone", rate=engine)
    record.fact("slowest stage", "decoding" if decoding < engine else "the engine")
    record.fact("the whole reaches, of its slowest stage", whole / min(decoding, engine))


def make_scorer(*, work: str, quick: bool, top_k: int) -> Scorer:
    """A scorer around the network in PyTorch; made by the process that scores."""
    record = Record(Path(work) / "scorer.jsonl", work=Path(work), quick=quick)
    where, subject = measure.device(), Subject(record)
    bundle = _without_engine(subject)
    gpu = where if where.type == "cuda" else None
    predictor = Predictor(bundle, top_k=top_k, device=gpu, runner=_in_pytorch(subject))
    return Scorer(predictor, data=Data(), clip=bundle.info.clip)


def _worker(record: Record) -> tuple[WorkerSettings, Bundle]:
    """What a process that scores is made of."""
    try:
        bundle = engines.best_bundle(record)
    except Missing as error:
        record.note(f"{error.what}: {error.why}")
        record.fact("engine", PYTORCH)
        options: dict[str, Any] = {"work": str(record.work), "quick": record.quick, "top_k": 5}
        subject = Subject(record)
        _in_pytorch(subject)  # so that its weights are there
        return WorkerSettings("gpu_check.scoring:make_scorer", options), _without_engine(subject)
    info = bundle.info
    record.fact("engine", f"{info.backend}, {info.precision}, for {info.target}")
    options = {"bundle": str(bundle.path), "top_k": 5, "clip": info.clip, "data": Data()}
    options["device"] = 0 if info.target.startswith("sm") else None
    return WorkerSettings("ssv2rt.scoring.worker:make_scorer", options), bundle


def _in_pytorch(subject: Subject) -> Runner:
    where = measure.device()
    return TorchRunner(fast(subject.model, where, half(where)), where)


def _without_engine(subject: Subject) -> Bundle:
    """What scoring has to know of the network that stands for an engine."""
    where, clip = measure.device(), subject.clip
    info = BundleInfo(
        backend=PYTORCH,
        backend_version=torch.__version__,
        precision="fp16",
        target=gpu_architecture(where) if where.type == "cuda" else "cpu",
        model="resnet3d18",
        input="frames",
        input_shape=("batch", clip.frames, clip.size, clip.size, 3),
        batch=BatchProfile(min=1, best=subject.best, max=MOST),
        clip=clip,
        labels=subject.labels,
        weights_sha256="",
        files={},
        onnx_file="",
        engine_file="",
        rebuild="",
    )
    return Bundle(subject.folder, info)


def _runner(record: Record, bundle: Bundle) -> Runner:
    if bundle.info.backend == PYTORCH:
        return _in_pytorch(Subject(record))
    return load_runner(open_bundle(bundle.path))


def _device(bundle: Bundle, where: torch.device) -> torch.device:
    """Where clips are made for an engine."""
    return where if bundle.info.target.startswith("sm") else torch.device("cpu")


def _answers(supervisor: Supervisor, paths: Iterable[str | Path]) -> Iterator[dict[str, Any]]:
    """Rows, as they come."""
    for answer in supervisor.score((number, Video(str(path), Path(path))) for number, path in enumerate(paths)):
        yield from (row for _, row in answer)


def _scored(supervisor: Supervisor, paths: Iterable[str]) -> Rows:
    return {row["path"]: row for row in _answers(supervisor, paths)}


def _by_pyav(path: Path, clip: Clip) -> str:
    """What comes of a file by PyAV, on the CPU."""
    try:
        decode_clips(path, evaluation_request(path.name, path, probe(path), clip=clip), size=clip.size)
    except CLIP_ERRORS as error:
        return reason_of(error)
    return OK


def _bad_files(record: Record, good: Path) -> list[Path]:
    """Files that are no videos, or not whole, or not what they say; and some that are not there."""
    folder = record.work / "bad"
    (folder / "folder.webm").mkdir(parents=True, exist_ok=True)
    data = good.read_bytes()
    contents = {
        "empty.webm": b"",
        "text.mp4": b"not a video\n" * 50,
        "half.webm": data[: len(data) // 2],
        "header.webm": data[:300],
        "liar.webm": data.replace(b"V_VP9", b"V_VP8", 1),  # another codec than it says
        **{f"{kind}.webm": _damaged(good, data, kind) for kind in ("flipped", "zeros", "noise", "first")},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    made = [folder / name for name in contents]
    return [*made, _sound(folder), folder / "folder.webm", folder / "gone.webm"]


def _damaged(good: Path, data: bytes, kind: str) -> bytes:
    """The file with its container whole, and packets spoilt: one bit of each, all but their heads, or the first one."""
    rng, spoilt = np.random.default_rng(0), bytearray(data)
    with av.open(str(good)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size > 20]
    for number, packet in enumerate(packets):
        place = data.find(packet)
        if place < 0 or (kind == "first") != (number == 0):
            continue
        if kind == "flipped":
            spoilt[place + int(rng.integers(12, len(packet)))] ^= 1 << int(rng.integers(8))
        else:
            count = len(packet) - 3  # behind the frame's marker and kind
            spoilt[place + 3 : place + 3 + count] = bytes(count) if kind != "noise" else rng.bytes(count)
    return bytes(spoilt)


def _sound(folder: Path) -> Path:
    """A film without pictures."""
    path = folder / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
