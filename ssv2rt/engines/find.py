"""The engines of a run: which there are, and which one a command takes.

A folder is named after precision, backend and, on GPUs, architecture: int8-openvino, fp16-tensorrt-sm90. So engines for other
machines stay. A precision alone names the newest engine of that precision that runs here.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.errors import UserError, suggest
from ssv2rt.core.run_folders import Run, find_run, known_runs
from ssv2rt.engines.bundle import FAILED, INFO, PRECISIONS, Bundle, BundleInfo, open_bundle, read_info, sha256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundEngine:
    """An engine of a run, of which only `bundle.json` has been read."""

    path: Path
    info: BundleInfo | None
    """None if `bundle.json` is damaged."""
    cannot_run: str
    """Why it does not run on this machine, as the end of a sentence; empty if it does."""

    @property
    def name(self) -> str:
        return self.path.name


def engines_of(run: Run) -> list[FoundEngine]:
    """All engines of a run that passed their gate, the newest first."""
    files = [file for file in run.engines.glob(f"*/{INFO}") if not _is_hidden(file.parent.name)]
    files.sort(key=lambda file: file.stat().st_mtime_ns, reverse=True)
    return [_read(file.parent) for file in files]


def find_engine(run: Run, name: str | None = None) -> Bundle:
    """The newest engine of a run that runs on this machine.

    Args:
        run: the run.
        name: folder of an engine, such as int8-openvino, which is taken even if it does not run here; or a precision, of
            which it shall be; or None for any.

    Raises:
        UserError: there is no such engine, none runs here, or it is damaged.
    """
    engines = engines_of(run)
    for engine in engines:
        if engine.name == name:
            return _opened(engine, run)
    alike = [engine for engine in engines if name is None or (engine.info and engine.info.precision == name)]
    if not engines:
        raise no_engine_yet(run)
    if not alike:
        names = sorted(engine.name for engine in engines)
        raise UserError(
            f"run '{run.path}' has no engine '{name}'{suggest(name or '', names)}{other_runs_with(name, run)}; make one with "
            f"`{build_command(run, name)}`"
        )
    for number, engine in enumerate(alike):
        if not engine.cannot_run:
            for newer in alike[:number]:
                logger.warning(f"taking the engine '{engine.name}', since '{newer.name}' {newer.cannot_run}")
            return _opened(engine, run)
    reasons = "; ".join(f"'{engine.name}' {engine.cannot_run}" for engine in alike)
    raise UserError(
        f"no engine of run '{run.path}' runs here: {reasons}; make one with `ssv2rt build-engine {run.name}`"
    )


def no_engine_yet(run: Run) -> UserError:
    """The error where a run has no engine."""
    return UserError(
        f"run '{run.path}' has no engine yet{other_runs_with(None, run)}; make one with `{build_command(run)}`"
    )


def build_command(run: Run, name: str | None = None) -> str:
    """The command that builds an engine of a run: of the precision `name`, or fp16 if it is none."""
    return f"ssv2rt build-engine {shlex.quote(run.name)} --{name if name in PRECISIONS else 'fp16'}"


def other_runs_with(name: str | None, run: Run, most: int = 3) -> str:
    """Which other runs have an engine of a name or precision (None: any), as part of a message; empty if none has."""
    found = [
        other
        for other in known_runs(run.path.parent, for_engine=True)
        if other != run.name
        for engine in (file.parent.name for file in Run(run.path.parent / other).engines.glob(f"*/{INFO}"))
        if not _is_hidden(engine) and (name is None or name in (engine, engine.partition("-")[0]))
    ]
    names = list(dict.fromkeys(found))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"; other runs that have one: {', '.join(names[:most])}{more}" if names else ""


def engine_named(name: str | None, run: str | None = None) -> Bundle:
    """The engine that a command is to use.

    Args:
        name: folder of an engine, or what it is called among the engines of the run; None for the newest that runs here.
        run: name or path of a run; None for the newest.

    Raises:
        UserError: see `find_engine`.
    """
    if name is None or run is not None:
        return find_engine(find_run(run, for_engine=True), name)
    path = Path(name)
    if not path.exists():
        if (
            path.parent.name == "engines" and path.parent.is_dir()
        ):  # runs/NAME/engines/int8, for whichever backend it is
            return find_engine(Run(path.parent.parent), path.name)
        if path.name == name:
            return find_engine(find_run(), name)
    return open_bundle(path)


def _opened(engine: FoundEngine, run: Run) -> Bundle:
    """The bundle of an engine, with a warning if the run has been trained on since it was built."""
    from ssv2rt.models.weights import WEIGHTS  # imports PyTorch, which takes a while

    bundle = open_bundle(engine.path)
    weights = run.checkpoints / "best" / WEIGHTS
    if weights.is_file() and bundle.info.weights_sha256 not in ("", sha256(weights)):
        logger.warning(
            f"the engine '{engine.name}' was built from earlier weights than the best checkpoint of run '{run.path}' has now; "
            f"rebuild it with `{bundle.info.rebuild}`"
        )
    return bundle


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.endswith(FAILED)


def _read(path: Path) -> FoundEngine:
    try:
        info = read_info(path / INFO)
    except UserError:
        return FoundEngine(path, None, f"has a damaged {INFO}")
    from ssv2rt.engines.backends.registry import NAMES, backend  # imports PyTorch, which takes a while

    if info.backend not in NAMES:
        return FoundEngine(path, info, f"needs the unknown backend '{info.backend}'")
    engine_backend = backend(info.backend)
    if reason := engine_backend.unavailable_reason():
        return FoundEngine(path, info, f"needs {info.backend}, and {reason}")
    return FoundEngine(path, info, engine_backend.incompatible_reason(info))
