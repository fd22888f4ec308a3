"""Run directories, `runs/latest`, and the user's cache."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from ssv2rt.core.atomic_files import replace_link
from ssv2rt.core.errors import UsageError, UserError, suggest
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Recipe

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
        replace_link(self.path.parent / "latest", self.path.name)


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
    raise UserError(f"no run '{name}'{suggest(name, known)}; make one with `ssv2rt train`")


def _followed(path: Path) -> Path:
    """What a link in the same folder points to."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def cache_folder() -> Path:
    """Where synthetic sets live: `$SSV2RT_CACHE`, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("SSV2RT_CACHE") or platformdirs.user_cache_dir("ssv2rt"))
