"""What must hold of the data and of this machine before training starts."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import numpy as np

from ssv2rt.core.errors import UserError
from ssv2rt.core.train_settings import Train
from ssv2rt.dataset.manifest import Split
from ssv2rt.training.distributed import Group


def check_classes(training: Split) -> None:
    """Raises UserError if there are fewer than two classes."""
    if len(training.labels) < 2:
        inner = training.folder / training.labels[0]
        below = sorted(path.name for path in inner.iterdir() if path.is_dir()) if inner.is_dir() else []
        fix = "a folder for each class, or a table with the columns path and label"
        if len(below) > 1:
            fix = f"if those are '{below[0]}', '{below[1]}' and so on, give --data '{inner}'"
        raise UserError(
            f"'{training.folder}' has only one class, '{training.labels[0]}', and training needs at least two: {fix}"
        )


def check_data(training: Split, validation: Split, settings: Train, group: Group) -> None:
    """Raises UserError if there are fewer than two classes, clips without a label, or too few clips for an optimizer step."""
    check_classes(training)
    for name, split in (("training", training), ("validation", validation)):
        if len(unlabeled := np.flatnonzero(split.classes < 0)):
            raise UserError(
                f"{len(unlabeled)} of {len(split)} {name} clips have no label, such as '{split.path(int(unlabeled[0]))}'; "
                f"give each one, or leave these clips out of the data"
            )
    if len(training) < settings.batch * settings.accumulate * group.size:
        processes = f" x {group.size} processes" if group.size > 1 else ""
        raise UserError(
            f"{len(training)} training clips do not fill one update of {settings.batch} x "
            f"{settings.accumulate} clips{processes} (train.batch_size x train.accumulate); set "
            f"train.fit_to_data = true, which chooses them, or lower one of the two, and train.learning_rate with it"
        )


def check_compiler(group: Group) -> None:
    """Raises UserError if what torch.compile needs is missing: a compiler and, for Triton on a GPU, Python's headers."""
    on_gpu = group.device.type == "cuda"
    language, compiler, other = ("C", "gcc", "clang") if on_gpu else ("C++", "g++", "clang++")
    compiler = os.environ.get("CC" if on_gpu else "CXX", compiler)
    fix = "leave train.compile out"
    if not (shutil.which(compiler) or shutil.which(other)):
        raise UserError(
            f"train.compile = true needs a {language} compiler, and '{compiler}' is not installed; install g++, or {fix}"
        )
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if on_gpu and not headers.is_file():
        raise UserError(f"train.compile = true needs '{headers}' on a GPU; install python3-dev, or {fix}")
