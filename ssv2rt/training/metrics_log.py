"""What a run tells while it trains: metrics.jsonl, and TensorBoard where it is asked for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.errors import UserError
from ssv2rt.core.run_folders import Run


class MetricsLog:
    """Writes down the figures of a run, beginning after those that stand there already.

    Args:
        run: gets metrics.jsonl and, if wanted, a folder `tensorboard`.
        epoch: how many are complete.
        update: changes of the weights so far; what stands there of later ones is dropped, and will be written again.
        tensorboard: whether to write for TensorBoard too.

    Raises:
        UserError: TensorBoard is wanted and not installed.
    """

    def __init__(self, run: Run, *, epoch: int, update: int, tensorboard: bool) -> None:
        self._file = run.metrics_file
        if self._file.is_file():
            lines = read_metrics(self._file)
            # A line on an epoch that is not complete: the power went between it and its checkpoint.
            kept = [x for x in lines if x["update"] <= update and ("validation" not in x or x["epoch"] <= epoch)]
            write_text(self._file, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._board = _board(run.path / "tensorboard", update) if tensorboard else None

    def write(self, *, epoch: float, update: int, **facts: Any) -> None:
        """A line of figures, which stand after so many epochs and changes of the weights."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, "update": update, **facts}) + "\n")
        if self._board:
            for name, value in _flat(facts).items():
                self._board.add_scalar(name, value, update)
            self._board.flush()

    def close(self) -> None:
        if self._board:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without those that are torn; none if there is no such file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):  # torn by a crash
            line = json.loads(text)
            if isinstance(line, dict) and {"epoch", "update"} <= line.keys():
                lines.append(line)
    return lines


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Figures by name, those of a group as group/name."""
    flat: dict[str, float] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": float(value)}
    return flat


def _board(folder: Path, update: int):  # type: ignore[no-untyped-def]  # an optional package
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "train.tensorboard = true needs TensorBoard; install it with `pip install 'ssv2rt[tensorboard]'`"
        ) from None
    return SummaryWriter(folder, purge_step=update + 1 if update else None)
