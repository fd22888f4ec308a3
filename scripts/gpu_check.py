#!/usr/bin/env python3
"""Finds out on a host with a GPU what no other machine can tell: frames by NVDEC, the tests marked gpu, and how fast it is.

    python scripts/gpu_check.py                     # 10 minutes, from a checkout, without installing it
    python scripts/gpu_check.py --only frames,trust --video CLIP.webm
    python scripts/gpu_check.py --dry-run           # all of it on a CPU, in small: DALI's CPU decoder stands for NVDEC

Each finding is a line of JSON, written at once to stdout and to the file --out; what programs say, and the stacks of failures,
go to a file beside it that ends in .log. A finding with the key "failed" says what went wrong. Each step is a process of its
own, so that one that crashes or hangs costs itself only; of tests, only the one that crashed. Without a GPU nothing is run
after the step `machine`. Exit code: 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import importlib.metadata
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ssv2rt.core.recipes import Clip, Data, Synthetic  # noqa: E402
from ssv2rt.dataset.prepare import ssv2_like_set, synthetic_set  # noqa: E402
from ssv2rt.doctor.examine import examine, look  # noqa: E402
from ssv2rt.pipelines.hand_over import Counting, HandOver, Kind, hand_over, read_coded  # noqa: E402
from ssv2rt.pipelines.loaded_clip import Decoder, GraphFailed, LoadedClip  # noqa: E402
from ssv2rt.pipelines.loader import ClipLoader  # noqa: E402
from ssv2rt.pipelines.nvdec_limits import limits_of  # noqa: E402
from ssv2rt.pipelines.request_source import evaluation_request  # noqa: E402
from ssv2rt.pipelines.requests import ClipRequest  # noqa: E402
from ssv2rt.video.decode import decode_clips  # noqa: E402
from ssv2rt.video.probe import probe  # noqa: E402

FEW = Clip(frames=8, size=112)


class Check:
    """What a step is given: what it works with, and where its findings go."""

    def __init__(
        self, step: str, options: argparse.Namespace, write: Callable[[Any], None], seconds: float, ran: Sequence[str]
    ) -> None:
        self.step, self.dry, self.video, self._write = step, options.dry_run, options.video, write
        self.seconds = seconds
        """That are left for the step."""
        self.ran = ran
        """Tests that ran before one of them ended the process."""
        self.device = torch.device("cpu") if self.dry else torch.device("cuda", 0)
        self.decoder: Decoder = "cpu" if self.dry else "mixed"
        self.setting = "dali" if self.dry else "nvdec"  # the same, as a value of data.decoder
        self.counting: Counting = "shown" if self.dry else "decoded"  # as is expected of it

    def found(self, finding: str, **facts: Any) -> None:
        self._write({"step": self.step, "finding": finding, **facts})

    @contextlib.contextmanager
    def part(self, finding: str) -> Iterator[None]:
        """A part of a step: its failure is a finding, and the step goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.found(finding, failed=reason_of(error))

    def frame_graph(self) -> Any:
        from ssv2rt.pipelines.dali_graph import FrameGraph

        return FrameGraph(self.decoder, self.device.index)

    def clips(self) -> list[Path]:
        """Videos coded as SSv2's are, in the user's cache."""
        small = Synthetic(clips=30, width=171, height=128, frames=(24, 28))
        return sorted(((synthetic_set(small, "first") if self.dry else ssv2_like_set()) / "videos").iterdir())


def machine(check: Check) -> None:
    """Versions, and what NVDEC says that it takes."""
    check.found("machine", **asdict(look()), cores=os.cpu_count(), python=sys.version)
    with check.part("packages"):
        check.found("packages", versions={made.name: made.version for made in importlib.metadata.distributions()})
    with check.part("NVDEC"):
        takes = {" ".join(map(str, kind)): vars(limit) for kind, limit in limits_of(check.device).items()}
        check.found("NVDEC", codec_chroma_bits=takes)
    if shutil.which("nvidia-smi"):
        with check.part("nvidia-smi"):
            said = subprocess.check_output(["nvidia-smi"], text=True, timeout=20)
            check.found("nvidia-smi", said=said.splitlines())


def frames(check: Check) -> None:
    """A clip as SSv2 has it, as a whole file and as it is handed over: which frame comes for which that is asked for?"""
    path = check.video or check.clips()[0]
    true, whole, handed = by_pyav(path), as_it_is(path), handed_over(path)
    last, pictures, twice = len(true) - 1, int(handed.decoded[-1]) + 1, np.array([0, 5, 5, 9], np.int32)
    check.found("clip", frames=len(true), pictures=pictures, size=true.shape[2:0:-1], kind=str(handed.kind))
    cases = {
        "whole file": (whole, whole.frames, whole.frames),
        "handed over, decoded pictures counted": (handed, handed.decoded, handed.frames),
        "handed over, shown pictures counted": (handed, handed.shown, handed.frames),
        "whole file, a frame twice": (whole, twice, twice),
    }
    for at in (last, last + 1, pictures - 1, pictures):  # one by one, since an error ends DALI's pipeline
        for name, file in (("whole file", whole), ("handed over", handed)):
            cases[f"{name}, at {at}"] = (file, np.array([at], np.int32), np.array([at]))
    for name, (file, positions, asked) in cases.items():
        with check.part(name):
            check.found(name, **beside(check.frame_graph().decode(file, positions), true, asked))


def cache(check: Check) -> None:
    """Whether DALI keeps its decoders, which the first call and the others tell; and whether it takes a wrong one."""
    shapes = [("vp9", 427, 240), ("vp9", 424, 240), ("h264", 428, 240), ("h264", 640, 368)]
    with tempfile.TemporaryDirectory() as place:
        for codec, width, height in shapes[:2] if check.dry else shapes:  # DALI's CPU decoder has no H.264
            with check.part(f"{codec}, {width} x {height}"):
                path, graph = film(place, codec, width=width, height=height), check.frame_graph()
                file = as_it_is(path) if width == 428 else handed_over(path)  # cropped H.264 is not handed over
                seconds = timeit.repeat(partial(graph.decode, file, file.decoded[[0, 10, 20]]), number=1, repeat=20)
                median = round(float(np.median(seconds[1:])), 5)
                check.found(f"{codec}, {width} x {height}", first_seconds=round(seconds[0], 5), seconds=median)
        graph = check.frame_graph()
        for number, (width, height) in enumerate([(448, 256), (442, 250), (448, 250), (442, 256), (448, 256)]):
            path = film(place, "vp9", width=width, height=height, shift=number)
            file = handed_over(path)
            seen = graph.decode(file, file.positions(check.counting))
            check.found("after another size", size=(width, height), **beside(seen, by_pyav(path), file.frames))


def race(check: Check) -> None:
    """Whether batches stay what they are while the GPU is late, and DALI goes on to write its next ones."""
    from ssv2rt.pipelines.dali_graph import ClipGraph

    paths = check.clips()[:8]
    requests = requests_of(paths, FEW)
    fetched = [LoadedClip(r, handed_over(p, r.frames), check.counting) for p, r in zip(paths, requests, strict=True)]
    graph = ClipGraph(size=112, batch=4, decoder=check.decoder, augment=False, threads=4, gpu=check.device.index)
    graph.feed(fetched[:4])
    taken: list[Any] = []
    for number in range(1, 15):  # two batches are in the graph, as the loader has them
        graph.feed(fetched[4:] if number % 2 else fetched[:4])
        if not check.dry and number > 2:
            torch.cuda._sleep(40_000_000)  # 20 ms, on the stream that reads
        taken.append(graph.take())
    same = sum(torch.equal(clips, taken[number % 2]) for number, clips in enumerate(taken))
    off = [off_by(clip, request) for clip, request in zip([*taken[0], *taken[1]], requests, strict=True)]
    check.found("race", same=f"{same} of {len(taken)}", off_by=rounded(off), held=len(graph._guard._held))
    assert same == len(taken), "batches change while the GPU is late"


def trust(check: Check) -> None:
    """What the loader decides for each kind of video, and how far its clips are from PyAV's."""
    loader = ClipLoader(clip=FEW, batch=3, data=Data.model_validate({"decoder": check.setting}), device=check.device)
    with tempfile.TemporaryDirectory() as place:
        for name in ("vp9, hidden", "vp9", "vp8", "h264", "h264, B frames"):
            with check.part(name):
                hidden, known = name == "vp9, hidden", set(loader.decoder_trust.decisions)
                paths = check.clips()[:6] if hidden else [film(place, name, shift=50 * n) for n in range(6)]
                requests, off, bad = requests_of(paths, FEW), [], []
                for batch in loader.batches([requests[:3], requests[3:]]):
                    bad += [clip.reason for clip in batch.bad]
                    off += [off_by(clip, request) for clip, request in zip(batch.clips, batch.requests, strict=True)]
                made = {k: v.as_dict() for k, v in loader.decoder_trust.decisions.items() if k not in known}
                check.found(name, decisions=made, bad=bad, off_by=rounded(off))


def damage(check: Check, codec: str) -> None:
    """Decodes damaged streams. An exception in NVIDIA's parser aborts this process, which the one above it records."""
    with tempfile.TemporaryDirectory() as place:
        handed = handed_over(check.clips()[0] if codec == "vp9" else film(place, "vp8" if check.dry else codec))
    positions, rng, outcomes = handed.positions(check.counting), np.random.default_rng(0), Counter[str]()
    graph = check.frame_graph()
    clean = graph.decode(handed, positions)
    for number in range(20):
        spoilt, bits = handed.file.copy(), 1 if number % 2 else 50
        for at in rng.integers(44, len(spoilt), bits):  # behind the headers of the file and of its first packet
            spoilt[at] ^= 1 << int(rng.integers(8))
        print(f"damage {number}: {bits} bits", file=sys.stderr, flush=True)
        try:
            seen = graph.decode(replace(handed, file=spoilt), positions)
            outcomes["the same frames" if np.array_equal(seen, clean) else "other frames"] += 1
        except GraphFailed as error:
            outcomes[reason_of(error)] += 1
            graph = check.frame_graph()
    check.found("damaged streams", outcomes=outcomes)


def tests(check: Check, folder: str) -> None:
    """The tests marked gpu of a folder; on a dry run, a few that need none."""
    import pytest

    class Reporter:
        def pytest_runtest_logstart(self, nodeid: str) -> None:
            check.found(BEGINS, name=nodeid)

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or not report.passed:
                rows = report.longreprtext.strip().splitlines()
                why = [row for row in rows if row.startswith("E ")] or rows[-1:]
                said: dict[str, Any] = {} if report.passed else {report.outcome: " ".join(why)[:300]}
                if report.failed:
                    print(
                        report.longreprtext, file=sys.stderr, flush=True
                    )  # now, since pytest might not come to its end
                    said["said"] = [row[:200] for row in rows[-25:]]
                check.found("test", name=report.nodeid, seconds=round(getattr(report, "duration", 0), 1), **said)
                if report.failed and torch.cuda.is_initialized():
                    try:
                        torch.cuda.synchronize()
                    except RuntimeError as error:  # it stays, and all later tests would fail: they get another process
                        print(f"the GPU cannot be used any more: {error}", file=sys.stderr, flush=True)
                        os._exit(1)

        pytest_collectreport = pytest_runtest_logreport  # a file that cannot be imported

    files = gpu_tests(folder)
    assert files, f"no test in tests/{folder} is marked gpu"  # pytest would run all that there are
    chosen = ["-k", "share_by_pyav or averaged_model or onnx_only"] if check.dry else ["-m", "gpu"]
    # Nothing is captured: what NVIDIA's libraries say before they end the process would be lost.
    options = ["-v", "-s", "-o", "addopts=", "-o", f"timeout={0.6 * check.seconds:.0f}", "--import-mode=importlib"]
    options += ["-p", "no:cacheprovider", "-p", "no:xdist", *(f"--deselect={name}" for name in check.ran)]
    os.environ["SSV2RT_REQUIRE_GPU"] = "" if check.dry else "1"
    code = pytest.main([*options, "--continue-on-collection-errors", *chosen, *map(str, files)], plugins=[Reporter()])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(f"pytest ended with {code!r}")  # such as for conftest.py, which cannot be imported


def gpu_tests(folder: str) -> list[Path]:
    """The files of a folder of tests, and of those below it, that have tests marked gpu."""
    return [f for f in sorted((ROOT / "tests" / folder).glob("**/test_*.py")) if "mark.gpu" in f.read_text("utf-8")]


def decode(check: Check) -> None:
    """Clips a second through the loader, by DALI's decoder and by PyAV with as many threads."""
    clip, size = (FEW, 4) if check.dry else (Clip(frames=16, size=224), 32)
    requests = requests_of(check.clips(), clip)
    for threads in (1, 2) if check.dry else (8, 16, 32):
        for decoder in (check.setting, "pyav"):
            with check.part(f"{decoder}, {threads} threads"):
                data = Data.model_validate({"decoder": decoder, "threads": threads})
                loader = ClipLoader(clip=clip, batch=size, data=data, device=check.device)
                batches = loader.batches([requests[at : at + size] for at in (0, len(requests) - size)] * 10_000)
                for _ in range(3):
                    next(batches)
                done, start = 0, time.perf_counter()
                while time.perf_counter() - start < (0.5 if check.dry else 2):
                    done += len(next(batches).clips[:, 0, 0, 0, 0].tolist())  # which waits for the device
                rate = round(done / (time.perf_counter() - start), 1)
                batches.close()  # type: ignore[attr-defined]  # a generator: stops its threads
                check.found("decoding", decoder=decoder, threads=threads, clips_per_second=rate)


def benchmark(check: Check, words: str, small: str) -> None:
    """A command of `ssv2rt benchmark`."""
    with tempfile.TemporaryDirectory() as place:
        out, videos = Path(place, "figures.json"), check.clips()[0].parent
        command = (small if check.dry else words).format(data=videos.parent, videos=videos)
        line = [sys.executable, "-m", "ssv2rt", "benchmark", *command.split(), "--json", str(out)]
        subprocess.run(line, check=True)
        figures = json.loads(out.read_text(encoding="utf-8")) | {"machine": None, "versions": None}
    check.found("benchmark", command=command, **figures)


def film(place: str, name: str, *, width: int = 320, height: int = 240, shift: int = 0) -> Path:
    """Writes 24 frames of moving waves, of which no two are alike."""
    codec, _, more = name.partition(", ")
    path = Path(place, f"{name}-{width}x{height}-{shift}.{'mp4' if codec == 'h264' else 'webm'}")
    encoder = {"vp9": "libvpx-vp9", "vp8": "libvpx", "h264": "libx264"}[codec]
    options = {"bf": "2" if more else "0"} if codec == "h264" else {"deadline": "realtime", "lag-in-frames": "0"}
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=12, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 10 * width * height
        for at in range(shift, shift + 24):
            waves = [np.sin((x + (3 + k) * at) / 23 + k) + np.cos((y - 5 * at) / 19 + 2 * k) for k in range(3)]
            picture = (127 + 50 * np.stack(waves, axis=-1) + 12 * np.sin(at / 3)).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def requests_of(paths: Sequence[Path], clip: Clip) -> list[ClipRequest]:
    return [evaluation_request(path.name, path, probe(path), clip=clip) for path in paths]


def handed_over(path: Path, wanted: np.ndarray | None = None) -> HandOver:
    """A video as the loader hands it to DALI, with all frames or with those that are wanted."""
    info = probe(path)
    coded = read_coded(path, codec=info.codec, pixels=info.pixels)
    return hand_over(coded, np.arange(info.frames) if wanted is None else wanted)


def as_it_is(path: Path) -> HandOver:
    """A whole file, with its frames counted as they are shown."""
    numbers = np.arange(probe(path).frames, dtype=np.int32)
    return HandOver(np.fromfile(path, np.uint8), Kind("", "", False, "plain"), numbers, numbers, numbers)


def by_pyav(path: Path) -> np.ndarray:
    """All frames: uint8 RGB (frames, height, width, 3)."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def off_by(clip: torch.Tensor, request: ClipRequest) -> float:
    """Mean difference of a clip (T, size, size, 3) from PyAV's."""
    true = torch.from_numpy(decode_clips(request.path, request, size=clip.shape[1])[0])
    return (clip.cpu().float() - true.float()).abs().mean().item()


def beside(seen: np.ndarray, true: np.ndarray, asked: np.ndarray) -> dict[str, Any]:
    """How some frames compare with all of PyAV's, as `by_pyav` has them, of which those numbered `asked` should come."""
    few = true[:, ::3, 3:-3:3].astype(np.int16)
    apart = [np.abs(few - frame[::3, 3:-3:3]).mean(axis=(1, 2, 3)) for frame in seen]
    right = sum(at < len(true) and far[at] < far.min() + 0.1 for far, at in zip(apart, asked, strict=True))
    columns = np.abs(seen.astype(np.int16) - true[np.minimum(asked, len(true) - 1)]).mean(axis=(1, 3))
    black = [place for place, frame in enumerate(seen) if frame.mean() < 5]
    facts = {"right": f"{right} of {len(asked)}", "nearest": [int(far.argmin()) for far in apart], "black": black}
    edges = rounded(columns[:, [0, -1]].mean(axis=0))
    return facts | {"off_by": rounded(columns[:, 1:-1].mean(axis=1)), "first_and_last_column_off_by": edges}


def reason_of(error: Exception) -> str:
    """In a line; DALI's own comes after where in its pipeline the error was."""
    said = str(error.__context__ or "").partition("encountered:")[2].strip() or f"{type(error).__name__}: {error}"
    return said.partition("\n")[0][:300]


def rounded(values: Any) -> list[float]:
    return [round(float(value), 2) for value in values]


TRAIN, NARROW = "train --steps 4 --set train.accumulate=1 --set train.batch_size=", "--rounds 2 --set model.width=8"
TINY = f"train --data {{data}} --steps 1 {NARROW} --set clip.frames=4 --set train.batch_size=4 --set clip.size="
BENCHMARKS = {
    "train-112": (f"{TRAIN}32 --rounds 2 --set clip.size=112", f"{TINY}32"),
    "train-224": (f"{TRAIN}16 --rounds 2", f"{TINY}48"),
    "score": ("score --count 256 --rounds 2 --names 0", f"score {{videos}} --size 4x32 --count 8 --names 0 {NARROW}"),
    "engine": ("engine --batch 32 --precision fp16", f"engine --size 4x32 --batch 2 --no-compile {NARROW}"),
    "peers": ("decode --clips 128 --rounds 2 --no-scale", "decode {videos} --clips 8 --rounds 2 --no-scale"),
}
FOLDERS = {"models": 60, "pipelines": 90, "training": 90, "scoring": 100, "doctor": 60, "engines": 150}
"""Of tests, with the seconds that they may take. Engines are compiled, which takes a minute each."""
BEGINS = "begins"
"""A finding that is not written: a test begins."""
STEPS: dict[str, tuple[Callable[[Check], None], float]] = {
    **{step.__name__: (step, 50) for step in (machine, frames, cache, race, trust)},
    **{f"damaged-{codec}": (partial(damage, codec=codec), 40) for codec in ("vp9", "h264")},
    **{f"tests-{name}": (partial(tests, folder=name), seconds) for name, seconds in FOLDERS.items()},
    "decode": (decode, 60),
    **{
        name: (partial(benchmark, words=words, small=small), 150 if name in ("score", "engine") else 60)
        for name, (words, small) in BENCHMARKS.items()
    },
    "doctor": (lambda check: check.found("doctor", **examine().as_dict()), 60),
}
"""Each with the seconds that it may take, three times as many on a dry run; it begins if there is a quarter of them left."""


def run(name: str, options: argparse.Namespace, seconds: float, write: Callable[[Any], None]) -> None:
    """Runs a step. If a test ends the process, those that come after it run in another one."""
    start, ran = time.monotonic(), list[str]()
    while True:
        begun = list[str]()
        left = start + seconds - time.monotonic()
        ended = attempt(name, options, left, write, ran, begun)
        if "failed" not in ended or not begun or start + seconds - time.monotonic() < min(10, seconds / 4):
            break
        ran += begun
        write({"step": name, "finding": "crash", "name": begun[-1], **ended})
    write({"step": name, "finding": "end", **ended, "seconds": round(time.monotonic() - start, 1)})


def attempt(
    name: str,
    options: argparse.Namespace,
    seconds: float,
    write: Callable[[Any], None],
    ran: Sequence[str],
    begun: list[str],
) -> dict[str, Any]:
    """Runs a step in a process that is forked, so that it need not import PyTorch anew. Nothing here may touch the GPU.

    Returns:
        Nothing, or how it failed. The tests that it began are appended to `begun`.
    """
    (here, there), start = multiprocessing.Pipe(duplex=False), time.monotonic()
    ended: dict[str, Any] = {}
    with options.out.with_suffix(".log").open("a+b") as log:
        log.seek(0, os.SEEK_END)
        before = log.tell()

        def work() -> None:
            os.setpgrp()
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            faulthandler.enable(log)
            faulthandler.dump_traceback_later(max(0.5, seconds - 2), file=log)
            print(f"=== {name}", file=sys.stderr, flush=True)
            STEPS[name][0](Check(name, options, there.send, seconds, ran))

        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        there.close()
        try:
            while here.poll(max(0.0, start + seconds - time.monotonic())):
                line = here.recv()
                if line["finding"] == BEGINS:
                    begun.append(line["name"])
                else:
                    write(line)
            ended["failed"] = f"stopped after {seconds:.0f} seconds"
        except (EOFError, OSError):
            process.join(10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
        if process.exitcode:
            log.seek(before)
            said = last_words(log.read().decode(errors="replace"))
            ended = {"failed": f"exit code {process.exitcode}"} | ended | {"said": said}
    return ended


def last_words(text: str) -> list[str]:
    """The last lines of a log, and those where the stacks of its end begin."""
    stacks = [found.start() for found in re.finditer(r"^(Fatal Python error|Timeout \()", text, re.MULTILINE)]
    before, after = (text[: stacks[-1]], text[stacks[-1] :]) if stacks else (text, "")
    return [line[:300] for line in (*before.splitlines()[-12:], *after.splitlines()[:12])]


def main() -> int:
    parser = argparse.ArgumentParser(description="Finds out what only a GPU can tell, in steps.")
    parser.add_argument("--minutes", type=float, default=9, help="what would begin later is left out (default: 9)")
    parser.add_argument("--only", default=",".join(STEPS), metavar="STEP,...", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default="gpu_check.jsonl", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, in small")
    parser.add_argument("--video", type=Path, metavar="FILE", help="a clip of SSv2, for the step 'frames'")
    options = parser.parse_args()
    names, stop_at = options.only.split(","), time.monotonic() + 60 * options.minutes
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"--only {unknown[0]}: there is no such step; there are {', '.join(STEPS)}")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    if options.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # the step that runs is ended, too
    no_gpu = False
    with options.out.open("w", encoding="utf-8") as file:

        def write(line: dict[str, Any]) -> None:
            nonlocal no_gpu
            no_gpu |= not options.dry_run and line.get("gpus") == ()
            for place in (sys.stdout, file):
                print(json.dumps(line, default=str), file=place, flush=True)

        for name in names:
            if no_gpu:
                write({"step": name, "finding": "left out", "failed": "PyTorch finds no GPU that it can use"})
                break
            left, most = stop_at - time.monotonic(), STEPS[name][1]
            if left < most / 4:
                write({"step": name, "finding": "left out", "seconds_left": round(left)})
            else:
                run(name, options, min(3 * most if options.dry_run else most, left), write)
    return int('"failed": ' in options.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
