"""A run's record of decoding: which kinds of video DALI may decode, and which clips crashed a process.

An exception inside NVIDIA's video parser aborts the whole process. Two files then remain in the folder `decoding` of the run:
the names of the clips that DALI was decoding, and the crash report of `faulthandler`. On resume, PyAV decodes those clips. A
process that was killed from outside leaves an empty crash report, and its clips are not blamed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ssv2rt.core.atomic_files import write_json
from ssv2rt.core.hardware import describe
from ssv2rt.core.run_folders import Run
from ssv2rt.pipelines.decoder_trust import Decision, DecoderTrust
from ssv2rt.pipelines.in_flight import read_in_flight
from ssv2rt.pipelines.loader import ClipLoader

_FOLDER = "decoding"


@dataclass
class DecodingRecord:
    """What a run knows about decoding its clips."""

    kinds: dict[str, Decision] = field(default_factory=dict)
    """See `DecoderTrust.decisions`."""
    by_pyav: list[str] = field(default_factory=list)
    """Names of the clips that DALI was decoding when a process crashed, now or earlier. PyAV decodes them."""
    crashed: list[str] = field(default_factory=list)
    """Those of the most recent crash."""


def read_decoding_record(run: Run) -> DecodingRecord:
    """Reads the record that an earlier process of the run left. Missing or damaged files count as empty."""
    record = DecodingRecord()
    facts: Any = {}
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        facts = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["decoder"]
    if isinstance(facts, dict) and isinstance(kinds := facts.get("kinds"), dict):
        decisions = {str(kind): Decision.of_dict(about) for kind, about in kinds.items() if isinstance(about, dict)}
        record.kinds = {kind: decision for kind, decision in decisions.items() if decision}
        by_pyav = facts.get("by_pyav")
        record.by_pyav = [str(name) for name in by_pyav] if isinstance(by_pyav, list) else []
    for crash_report in sorted((run.path / _FOLDER).glob("crash-*.txt")):
        if crash_report.is_file() and crash_report.stat().st_size:
            rank = crash_report.stem.removeprefix("crash-")
            for names in sorted((run.path / _FOLDER).glob(f"in-hand-{rank}-*.json")):
                record.crashed += read_in_flight(names)
    record.by_pyav = list(dict.fromkeys([*record.by_pyav, *record.crashed]))
    return record


def merged(records: Sequence[DecodingRecord]) -> DecodingRecord:
    """The records that the processes that train together have read, on one machine or on several, as one."""
    by_pyav, crashed = (
        list(dict.fromkeys(name for names in column for name in names))
        for column in ([record.by_pyav for record in records], [record.crashed for record in records])
    )
    return DecodingRecord(records[0].kinds, by_pyav, crashed)


def write_environment(run: Run, device: torch.device, decoder_trust: DecoderTrust, by_pyav: list[str]) -> None:
    """Writes environment.json: facts about the machine, and the decoding record."""
    kinds = {kind: decision.as_dict() for kind, decision in sorted(decoder_trust.decisions.items())}
    write_json(run.path / "environment.json", describe(device) | {"decoder": {"kinds": kinds, "by_pyav": by_pyav}})


@contextlib.contextmanager
def recording_crashes(run: Run, rank: int, loaders: dict[str, ClipLoader]) -> Iterator[None]:
    """Keeps the names of clips that DALI is decoding, and a crash report if the process dies, on disk during the block."""
    if not any(loader.decodes for loader in loaders.values()):
        yield
        return
    folder = run.path / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)  # only the machine of rank 0 has the folder of the run
    crash_report = folder / f"crash-{rank}.txt"
    names = {name: folder / f"in-hand-{rank}-{name}.json" for name in loaders}
    was_enabled = faulthandler.is_enabled()
    try:
        with crash_report.open("w") as file:
            faulthandler.enable(file)
            for name, loader in loaders.items():
                loader.note_in(names[name])
            try:
                yield
            finally:
                for loader in loaders.values():
                    loader.note_in(None)
                faulthandler.disable()
    finally:
        if was_enabled:
            faulthandler.enable(sys.__stderr__ or 2)
        for path in (crash_report, *names.values()):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
            run.path.rmdir()


def clear_crash_records(run: Run) -> None:
    """Removes the crash files of an earlier process."""
    for path in (run.path / _FOLDER).glob("*"):
        path.unlink(missing_ok=True)


def apply_decoding_record(record: DecodingRecord, decoder_trust: DecoderTrust, loaders: dict[str, ClipLoader]) -> None:
    """Passes a record on to the loaders of this process."""
    decoder_trust.decisions |= record.kinds
    for loader in loaders.values():
        loader.avoid |= set(record.by_pyav)
