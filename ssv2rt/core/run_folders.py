"""Run directories, the link `runs/latest`, and the cache folder."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.atomic_files import remove_all_partial_files, remove_partial_files, remove_tree, replace_link
from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.locks import exclusive, locks_held_in
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe

logger = logging.getLogger(__name__)

RUNS = Path("runs")
_unwritable: set[Path] = set()
"""Cache folders that a warning has named."""


@dataclass(frozen=True)
class Run:
    """One run directory: recipe.toml, environment.json, metrics.jsonl, checkpoints/, engines/."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def recipe_file(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def confusion_file(self) -> Path:
        return self.path / "confusion.csv"

    @property
    def results_file(self) -> Path:
        """What `evaluate` measured."""
        return self.path / "evaluations.jsonl"

    @property
    def source_file(self) -> Path:
        """Where the weights of an imported run are from; only imported runs have it."""
        return self.path / "source.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def engines(self) -> Path:
        return self.path / "engines"

    def recipe(self) -> Recipe:
        return load_recipe(str(self.recipe_file))

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best checkpoint; None before the first is complete."""
        name = (self.checkpoints / "best").resolve().name.removeprefix("epoch-")
        return int(name) if name.isdecimal() else None

    @property
    def is_started(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return (self.checkpoints / "last").exists()

    def remove_unless_started(self) -> None:
        """Removes the folder if it has no checkpoint, so that its name is free again."""
        if not self.is_started:
            remove_tree(self.path)

    def remove_partial_files(self) -> None:
        """Removes what killed processes left of writing this run. The caller holds its lock."""
        remove_all_partial_files(self.path, self.checkpoints, self.path / "summary")

    @contextlib.contextmanager
    def os_errors_as_user_errors(self) -> Iterator[None]:
        """Turns an `OSError` in the block, such as a full disk, into a `UserError` that says how to go on."""
        try:
            yield
        except OSError as error:
            how = f"continue with `ssv2rt train --resume {self.name}`" if self.is_started else "start the run again"
            raise UserError(f"the run '{self.path}' stopped: {error.strerror or error}; mend that, and {how}") from None

    def make_latest(self) -> None:
        """Points `latest` to this run, which commands use if no run is given."""
        latest = self.path.parent / "latest"
        remove_partial_files(latest)
        replace_link(latest, self.path.name)


def check_run_name(name: str) -> None:
    """Raises UsageError unless a run can have this name."""
    if Path(name).name != name or name == "latest" or name.startswith(".") or not name.isprintable() or len(name) > 200:
        raise UsageError(f"--name {name!r}: a run name is a plain folder name other than 'latest'; choose another")


def create_run(recipe_name: str, name: str = "", root: Path = RUNS) -> Run:
    """Creates a run directory `root/name`, by default named after the recipe and the time.

    `root/latest` does not point to it before `Run.make_latest` is called, after its first checkpoint.

    Raises:
        UsageError: the name is not a plain folder name.
        UserError: the name is taken, or `root` cannot be written.
    """
    stem = name or f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_run_name(stem)
    try:
        root.mkdir(parents=True, exist_ok=True)
        path = root / stem
        for attempt in range(2, 100):
            try:
                path.mkdir()
                break
            except FileExistsError:
                if name:
                    raise UserError(f"run '{path}' exists; choose another --name, or remove it") from None
                path = root / f"{stem}-{attempt}"
    except OSError as error:
        raise UserError(
            f"cannot make a run directory in '{root}': {error.strerror}; use a folder that you can write to"
        ) from None
    return Run(path)


def find_run(name: str | None = None, root: Path = RUNS, *, for_engine: bool = False) -> Run:
    """Finds a run by path or by name; by default the one that `root/latest` points to.

    Args:
        name: path or name.
        root: folder of the runs.
        for_engine: also find a folder that has engines and no run: `build-engine --onnx` makes these.

    Raises:
        UserError: there is no such run.
    """
    if name is None:
        if (root / "latest").is_dir():
            return Run(_resolve_link(root / "latest"))
        if started := known_runs(root):
            raise UserError(
                f"no run in '{root}/' has a checkpoint yet; wait until {started[-1]} has trained its first epoch, or name "
                "a run"
            )
        raise UserError(f"no run yet in '{root}/'; make one with `ssv2rt train`")
    for path in (Path(name), root / name):
        if is_run(path) or (for_engine and _has_engines(path)):
            return Run(_resolve_link(path))
    for path in (Path(name), root / name):
        if _has_engines(path):
            raise UserError(
                f"'{path}' has engines of an ONNX file, and no checkpoint; only `score` and `inspect` can use it; name a run "
                "of `ssv2rt train`"
            )
    known = known_runs(root, for_engine=for_engine)
    raise UserError(f"no run '{name}'{suggest(name, known)}; make one with `ssv2rt train`")


def known_runs(root: Path = RUNS, *, for_engine: bool = False) -> list[str]:
    """Names of the runs, sorted, without `latest`; with `for_engine` also of folders that only have engines."""
    found = {path.parent.name for path in root.glob("*/recipe.toml")}
    if for_engine:
        found |= {path.parent.name for path in root.glob("*/engines") if _has_engines(path.parent)}
    return sorted(name for name in found - {"latest"} if not name.startswith("."))


def remove_run(run: Run) -> None:
    """Removes a run with all its files. If `latest` points to it, that will point to the newest of the others.

    Raises:
        UserError: a process is training it or building an engine of it, or a file cannot be removed.
    """
    if busy := locks_held_in(run.engines):
        raise UserError(f"{busy[0]}; wait for it to end, or stop it")
    with exclusive(run.path, "removing"):
        latest = run.path.parent / "latest"
        was_latest = latest.is_symlink() and os.readlink(latest) == run.name
        # Under a hidden name first, so that no command finds half a run.
        hidden = run.path.with_name(f".{run.name[:100]}.removed.partial")
        remove_tree(hidden)
        try:
            os.replace(run.path, hidden)
        except OSError as error:
            raise UserError(f"cannot remove '{run.path}': {error.strerror}; see who owns it") from None
        if was_latest:
            others = [other for name in known_runs(latest.parent) if (other := Run(latest.parent / name)).is_started]
            if others:
                replace_link(
                    latest, max(others, key=lambda other: os.lstat(other.checkpoints / "last").st_mtime_ns).name
                )
            else:
                latest.unlink()
        remove_tree(hidden)
    if hidden.exists():
        raise UserError(f"some files of run '{run.path}' cannot be removed, and are in '{hidden}'; see who owns them")


def engines_of_file(file: Path, root: Path = RUNS) -> Path:
    """The folder for engines of an ONNX file: root/STEM/engines.

    Raises:
        UserError: the folder is that of a run.
    """
    folder = root / file.stem
    if file.stem == "latest" or is_run(folder):
        raise UserError(
            f"the engines of '{file}' go to '{folder}', which is a run of its own; give the file another name, such as "
            f"{file.stem}-onnx.onnx"
        )
    return folder / "engines"


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / "recipe.toml").is_file()


def _has_engines(path: Path) -> bool:
    return any((path / "engines").glob("*/bundle.json"))


def _resolve_link(path: Path) -> Path:
    """Follows a link to its target in the same folder; returns any other path unchanged."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def cache_folder() -> Path:
    """Folder for synthetic data sets and other cached files: `$SSV2RT_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("SSV2RT_CACHE") or platformdirs.user_cache_dir("ssv2rt"))


def optional_cache(name: str, benefit: str) -> Path | None:
    """A subfolder of the cache folder, made if it is missing; None, with a warning, if it cannot be written.

    Args:
        name: the subfolder.
        benefit: what is lost without it, for the warning: "engines start slower".
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
        reason = os.strerror(errno.EACCES)
    except OSError as error:
        reason = error.strerror or str(error)
    if folder not in _unwritable:
        _unwritable.add(folder)
        logger.warning(
            f"cannot write to the cache '{folder}' ({reason}), so {benefit}; set SSV2RT_CACHE to another folder"
        )
    return None
