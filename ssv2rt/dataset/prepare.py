"""From a recipe's `[data]` to a manifest, making the synthetic set on first use."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

from ssv2rt.core.atomic_files import atomic_folder
from ssv2rt.core.errors import UsageError
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Data, Synthetic
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.manifest import Manifest
from ssv2rt.dataset.synthetic import FORMAT, KeyFrames, is_complete, synthesize

logger = logging.getLogger(__name__)


def prepare(data: Data) -> Manifest:
    """The manifest of a recipe's data.

    Raises:
        UsageError: the recipe names no data.
        UserError: the folder is not a data set.
    """
    if data.synthetic:
        root = synthetic_set(data.synthetic)
    elif data.root:
        root = Path(data.root)
    else:
        raise UsageError("no data: give --data DIR, or set data.root in the recipe")
    with Progress(f"looking at the videos of {root}") as progress:
        return open_manifest(root, progress=progress.show)


def with_root(data: Data, root: Path | None) -> Data:
    """The same settings for the data set in `root`, if one is given."""
    if not root:
        return data
    # Absolute, so that the run finds its data from every folder.
    return data.model_copy(update={"root": os.path.abspath(root), "synthetic": None, "test_videos": ""})


def offer_test_videos(manifest: Manifest, folder: Path) -> None:
    """Copies the held-out test clips, and their labels, to `folder`, unless something of that name exists."""
    if folder.exists() or folder.is_symlink():
        return
    split = manifest.split("test")
    with atomic_folder(folder) as temporary:
        for row in range(len(split)):
            shutil.copyfile(split.path(row), temporary / split.path(row).name)
        shutil.copyfile(manifest.folder / "test-answers.csv", temporary / "test-answers.csv")
    logger.info(f"wrote the {len(split)} held-out test clips to '{folder}', to have something to score")


def like_ssv2() -> Path:
    """The folder of a small synthetic set in the size and the coding of SSv2, to measure with."""
    return synthetic_set(Synthetic(clips=60, width=427, height=240, frames=(40, 56)), key_frames="first")


def synthetic_set(spec: Synthetic, key_frames: KeyFrames = "all") -> Path:
    """The folder of a synthetic set in the user's cache, made if it is not there."""
    coding = "" if key_frames == "all" else f" {key_frames}"
    digest = hashlib.blake2b(
        f"{FORMAT[key_frames]} {spec.model_dump_json()}{coding}".encode(), digest_size=6
    ).hexdigest()
    root = cache_folder() / f"synthetic-{spec.clips}x{spec.width}x{spec.height}-{digest}"
    if not is_complete(root):
        with Progress(f"making the synthetic set in {root}", spec.clips) as progress:
            synthesize(root, spec, key_frames=key_frames, progress=progress.add)
    return root
