"""Benchmark of repacked clips beside the originals, with this package and with other libraries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssv2rt.benchmark.decode import OURS, one_torch_thread, training_crop, with_loader, with_peers
from ssv2rt.benchmark.peers import FLOAT
from ssv2rt.benchmark.rounds import Workload, describe_machine, run_rounds
from ssv2rt.core.cores import cores
from ssv2rt.core.errors import UsageError
from ssv2rt.core.hardware import choose_device, versions
from ssv2rt.core.recipes import Clip
from ssv2rt.repack.records import read_pairs
from ssv2rt.video.probe import probe

ORIGINAL = "original"
SIZES = (224, 112)
"""Pixels of the clips."""


def benchmark_repacked(folders: Sequence[Path], *, threads: int, clips: int, rounds: int) -> dict[str, Any]:
    """Measures random resized crops of 16 frames of repacked clips and of their originals, in clips per second.

    Args:
        folders: repacked data sets of the same source.
        threads: for each workload; 0 for one per core.
        clips: number of clips that each workload makes in a round.
        rounds: number of timed rounds, at least 2.

    Returns:
        By size of the clips: rates of each contestant with each kind of files, their CPU time for a clip, and by both how
        many times the rates of others this package reaches on each folder. CPU time is what holds on a busy machine, where
        a contestant with more threads gets more of the cores.

    Raises:
        UserError: a folder is no repacked data set, or its source is gone.
    """
    threads, device = threads or cores(), choose_device()
    files = _files(folders)
    infos = {name: [probe(path) for path in paths] for name, paths in files.items()}
    sizes: dict[str, Any] = {}
    with one_torch_thread():
        for size in SIZES:
            clip = Clip(frames=16, size=size)
            workloads: dict[str, Workload] = {}
            absent: dict[str, str] = {}
            for name, paths in files.items():
                places = [number % len(paths) for number in range(clips)]
                requests = [training_crop(paths[at], infos[name][at], clip, n) for n, at in enumerate(places)]
                workloads[f"{OURS}, {name}"] = with_loader(requests, clip, threads, device)
                of_peers, absent = with_peers(requests, clip, threads, device)
                workloads |= {f"{peer}, {name}": run for peer, run in of_peers.items() if FLOAT not in peer}
            spent: dict[str, list[float]] = {name: [] for name in workloads}
            timed = {name: _cpu_time_of(run, spent[name]) for name, run in workloads.items()}
            rates = run_rounds(timed, units=clips, rounds=rounds)
            cpu = {name: 1000 * statistics.median(seconds[1:]) / clips for name, seconds in spent.items()}
            median = {name: rate.median for name, rate in rates.items()}
            sizes[f"{clip.frames} x {size} x {size}"] = {
                "clips_per_second": {name: asdict(rate) for name, rate in rates.items()},
                "milliseconds_of_cpu": cpu,
                "times": {name: _times(name, median) for name in files if name != ORIGINAL},
                "times_by_cpu": {
                    name: _times(name, {key: 1 / value for key, value in cpu.items()})
                    for name in files
                    if name != ORIGINAL
                },
            }
    return {
        "machine": describe_machine(),
        "versions": versions(),
        "threads": threads,
        "device": str(device),
        "files": {name: _describe(paths, infos[name]) for name, paths in files.items()},
        "sizes": sizes,
        "absent": {name: why for name, why in absent.items() if FLOAT not in name},
    }


def _cpu_time_of(run: Workload, spent: list[float]) -> Workload:
    """The same work; the seconds that all cores together spend on it are appended to a list."""

    def timed() -> float | None:
        start = time.process_time()
        result = run()
        spent.append(time.process_time() - start)
        return result

    return timed


def _times(name: str, rates: Mapping[str, float]) -> dict[str, float]:
    """How many times the rates of others this package reaches on the files of a folder."""
    ours = rates[f"{OURS}, {name}"]
    best = {
        files: max(rate for key, rate in rates.items() if key.endswith(f", {files}") and not key.startswith(OURS))
        for files in (ORIGINAL, name)
    }
    return {
        "original": ours / rates[f"{OURS}, {ORIGINAL}"],
        "best_peer_on_original": ours / best[ORIGINAL],
        "best_peer_on_same_files": ours / best[name],
    }


def _files(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """The same clips of the original and of each folder, at most 200.

    Raises:
        UsageError: the folders have no clip in common.
    """
    of_source = [dict(read_pairs(folder)) for folder in folders]
    common = sorted(set.intersection(*(set(pairs) for pairs in of_source)))[:200]
    if not common:
        raise UsageError("the folders of --repacked were made from different data sets; give those of one")
    names = [folder.name if len(folders) == 1 else str(folder) for folder in folders]
    return {ORIGINAL: common} | {
        name: [pairs[source] for source in common] for name, pairs in zip(names, of_source, strict=True)
    }


def _describe(paths: Sequence[Path], infos: Sequence[Any]) -> str:
    size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
    first = infos[0]
    return f"{len(paths)} clips, {first.codec} {first.width}x{first.height}, {size:.0f} kB each"
