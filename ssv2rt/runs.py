"""Run directories, `runs/latest`, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssv2rt.errors import UsageError, UserError, choices
from ssv2rt.recipe_files import load_recipe
from ssv2rt.recipes import Recipe

RUNS = Path("runs")


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
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def engines(self) -> Path:
        return self.path / "engines"

    def recipe(self) -> Recipe:
        return load_recipe(str(self.recipe_file))

    def make_latest(self) -> None:
        """Makes it the one that commands take when none is named."""
        point_to(self.path.parent / "latest", self.path.name)


def create_run(recipe_name: str, name: str = "", root: Path = RUNS) -> Run:
    """A new run directory `root/name`, by default named after the recipe and the time.

    `root/latest` points to it once `Run.make_latest` is called, when it has something to offer.

    Raises:
        UserError: the name is taken, or `root` cannot be written.
    """
    stem = name or f"{recipe_name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if Path(stem).name != stem or stem == "latest" or stem.startswith(".") or not stem.isprintable() or len(stem) > 200:
        raise UsageError(f"--name {stem!r}: a run name is a plain folder name other than 'latest'; choose another")
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
        raise UserError(f"cannot make a run directory in '{root}': {error.strerror}; run where you may write") from None
    return Run(path)


def find_run(name: str | None = None, root: Path = RUNS) -> Run:
    """The run at the path or with the name `name`; without one, the newest.

    Raises:
        UserError: there is none.
    """
    if name is None:
        if (root / "latest").is_dir():
            return Run(_followed(root / "latest"))
        raise UserError(f"no run yet in '{root}/'; make one with `ssv2rt train`")
    for path in (Path(name), root / name):
        if (path / "recipe.toml").is_file():
            return Run(_followed(path))
    known = sorted(p.parent.name for p in root.glob("*/recipe.toml") if p.parent.name != "latest")
    raise UserError(f"no run '{name}'{choices(name, known)}; make one with `ssv2rt train`")


def _followed(path: Path) -> Path:
    """What a link in the same folder points to."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not.

    What readers see under `path` is the old file or the new one, complete and on disk.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    temporary.chmod(0o666 & ~_umask())
    try:
        yield temporary
        flush_to_disk(temporary)
        os.replace(temporary, path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(path: Path, older_than: float = 3600) -> None:
    """Removes what killed processes have left of `whole_file(path)`, once it is `older_than` seconds old."""
    for partial in path.parent.glob(f".{glob.escape(path.name[:100])}.????????.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > older_than:
                partial.unlink()


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, removed when the block ends unless `put_in_place` has moved it."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=parent))
    folder.chmod(0o777 & ~_umask())
    try:
        yield folder
    finally:
        remove_tree(folder)


def put_in_place(folder: Path, path: Path) -> None:
    """Renames a complete folder to `path`, beside it, replacing what was there."""
    for file in folder.rglob("*"):
        flush_to_disk(file)
    with scratch_folder(path.parent) as old:
        if path.is_dir():
            os.replace(path, old / path.name)
        os.replace(folder, path)
    flush_to_disk(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """As `whole_file`, for a folder. A folder that was at `path` is replaced."""
    with scratch_folder(path.parent) as temporary:
        yield temporary
        put_in_place(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def point_to(link: Path, target: str) -> None:
    """Makes `link` a symbolic link to `target` (relative to it), replacing an older link in one step."""
    temporary = link.with_name(f".{link.name}.{os.getpid()}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, link)


def flush_to_disk(path: Path) -> None:
    """fsync of a file or a folder; a file system that cannot is not an error."""
    flags = os.O_RDONLY | (os.O_DIRECTORY if path.is_dir() else 0)
    descriptor = os.open(path, flags)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def cache_folder() -> Path:
    """Where synthetic sets live: `$SSV2RT_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("SSV2RT_CACHE") or platformdirs.user_cache_dir("ssv2rt"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
