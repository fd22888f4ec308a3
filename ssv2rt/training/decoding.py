"""What a run keeps of how its clips are decoded: which kinds DALI is trusted with, and which clips have ended a process.

An exception inside NVIDIA's parser aborts the process. What is left then are two files: the names of the clips that DALI had
in hand, and Python's own note of the crash. A process that was killed from outside leaves no such note, and its clips are as
good as any.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import sys
from collections.abc import Iterator
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
class Decoding:
    """What is known of a run's clips."""

    kinds: dict[str, Decision] = field(default_factory=dict)
    """See `DecoderTrust.decisions`."""
    by_pyav: list[str] = field(default_factory=list)
    """Names of clips that were in hand when a process crashed."""
    crashed: list[str] = field(default_factory=list)
    """Those of them that are new."""


def read_decoding(run: Run) -> Decoding:
    """What an earlier process has left; nothing where there is nothing, or it is damaged."""
    found = Decoding()
    facts: Any = {}
    with contextlib.suppress(OSError, ValueError):
        facts = json.loads((run.path / "environment.json").read_text(encoding="utf-8"))["decoder"]
    if isinstance(facts, dict) and isinstance(kinds := facts.get("kinds"), dict):
        decisions = {str(kind): Decision.of_dict(about) for kind, about in kinds.items() if isinstance(about, dict)}
        found.kinds = {kind: decision for kind, decision in decisions.items() if decision}
        found.by_pyav = [str(name) for name in facts.get("by_pyav") or ()]
    for note in sorted((run.path / _FOLDER).glob("crash-*.txt")):
        if note.read_bytes():
            rank = note.stem.removeprefix("crash-")
            for names in sorted((run.path / _FOLDER).glob(f"in-hand-{rank}-*.json")):
                found.crashed += read_in_flight(names)
    found.by_pyav = list(dict.fromkeys([*found.by_pyav, *found.crashed]))
    return found


def write_environment(run: Run, device: torch.device, decoder_trust: DecoderTrust, by_pyav: list[str]) -> None:
    """Writes environment.json: the machine, and what is known of decoding on it."""
    kinds = {kind: decision.as_dict() for kind, decision in sorted(decoder_trust.decisions.items())}
    write_json(run.path / "environment.json", describe(device) | {"decoder": {"kinds": kinds, "by_pyav": by_pyav}})


@contextlib.contextmanager
def crashes_noted(run: Run, rank: int, loaders: dict[str, ClipLoader]) -> Iterator[None]:
    """While the block runs, what DALI decodes for these loaders is on disk, and so is what a crash leaves."""
    if not any(loader.decodes for loader in loaders.values()):
        yield
        return
    folder = run.path / _FOLDER
    folder.mkdir(exist_ok=True)
    note = folder / f"crash-{rank}.txt"
    names = {name: folder / f"in-hand-{rank}-{name}.json" for name in loaders}
    before = faulthandler.is_enabled()
    try:
        with note.open("w") as file:
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
        if before:
            faulthandler.enable(sys.__stderr__ or 2)
        for path in (note, *names.values()):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def forget_crashes(run: Run) -> None:
    """Takes away what an earlier process has left."""
    for path in (run.path / _FOLDER).glob("*"):
        path.unlink(missing_ok=True)


def use(found: Decoding, decoder_trust: DecoderTrust, loaders: dict[str, ClipLoader]) -> None:
    """Goes on with what is known."""
    decoder_trust.decisions |= found.kinds
    for loader in loaders.values():
        loader.avoid |= set(found.by_pyav)
