"""Opens the data set that a recipe's `[data]` section names. A synthetic set is made on first use."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ssv2rt.core.atomic_files import atomic_folder, remove_partial_files
from ssv2rt.core.errors import UsageError, os_errors_as_user_errors
from ssv2rt.core.progress import Progress
from ssv2rt.core.recipes import Data, Synthetic
from ssv2rt.core.run_folders import cache_folder
from ssv2rt.dataset.held_out import with_validation_share
from ssv2rt.dataset.index import open_manifest
from ssv2rt.dataset.listing import escape_non_utf8
from ssv2rt.dataset.manifest import TRAINING_COLUMNS, Manifest
from ssv2rt.dataset.synthetic import FORMAT, KeyFrames, is_complete, synthesize

logger = logging.getLogger(__name__)


def prepare(data: Data, columns: Sequence[str] = TRAINING_COLUMNS) -> Manifest:
    """The manifest of a recipe's data, with at least these columns.

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
    with Progress(f"indexing {root}") as progress:
        manifest = open_manifest(root, columns=columns, progress=progress.show)
    return with_validation_share(manifest, data.validation_share)


def is_here(data: Data) -> bool:
    """Whether the data of a recipe is on this machine, or can be made here."""
    return data.synthetic is not None or os.path.exists(data.root or "")


def override_root(data: Data, root: Path | None) -> Data:
    """`data` with another data set, if `root` is given.

    Raises:
        UsageError: the path is not UTF-8, so that it cannot be written into a recipe.
    """
    if not root:
        return data
    path = os.path.abspath(root)  # so that the run finds its data from any working directory
    if (shown := escape_non_utf8(path)) != path:
        raise UsageError(
            f"--data '{shown}' is not UTF-8, as paths in recipes must be; make a link to it: ln -s '{root}' data"
        )
    return data.model_copy(update={"root": path, "synthetic": None, "test_videos": ""})


def export_test_clips(manifest: Manifest, folder: Path) -> None:
    """Copies the test clips of a synthetic set, and their labels, to `folder`. Does nothing if that exists."""
    if folder.exists() or folder.is_symlink():
        return
    split = manifest.split("test")
    remove_partial_files(folder)
    fix = "mend that; the run itself is complete"
    with os_errors_as_user_errors(f"cannot copy the test clips to '{folder}'", fix), atomic_folder(folder) as temporary:
        for row in range(len(split)):
            shutil.copyfile(split.path(row), temporary / split.path(row).name)
        shutil.copyfile(manifest.folder / "test-answers.csv", temporary / "test-answers.csv")
    logger.info(f"wrote the {len(split)} held-out test clips to '{folder}', to have something to score")


def ssv2_like_set() -> Path:
    """The folder of a small synthetic set with the frame size and coding of SSv2, for benchmarks."""
    return synthetic_set(Synthetic(clips=60, width=427, height=240, frames=(40, 56)), key_frames="first")


def synthetic_set(spec: Synthetic, key_frames: KeyFrames = "all") -> Path:
    """The folder of a synthetic set in the cache folder. The set is made if it is missing."""
    coding = "" if key_frames == "all" else f" {key_frames}"
    digest = hashlib.blake2b(
        f"{FORMAT[key_frames]} {spec.model_dump_json()}{coding}".encode(), digest_size=6
    ).hexdigest()
    root = cache_folder() / f"synthetic-{spec.clips}x{spec.width}x{spec.height}-{digest}"
    if not is_complete(root):
        with Progress(f"making the synthetic set in {root}", spec.clips) as progress:
            synthesize(root, spec, key_frames=key_frames, wait=True, progress=progress.add)
    return root
