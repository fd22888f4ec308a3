"""What `evaluate` measured of a run, one line of JSON for each call in evaluations.jsonl. The model card reads it."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ssv2rt.core.errors import one_line
from ssv2rt.core.recipes import Recipe
from ssv2rt.core.run_folders import Run
from ssv2rt.models.weights import TrainedModel
from ssv2rt.training.evaluate import Evaluation
from ssv2rt.training.metrics_log import read_metrics
from ssv2rt.training.request import EvaluateRequest

logger = logging.getLogger(__name__)

Percent = Annotated[float, Field(ge=0, le=100)]


class Result(BaseModel):
    """Accuracy of a checkpoint on a split, in percent."""

    model_config = ConfigDict(frozen=True)

    date: str = ""
    """Such as 2026-01-31; empty for the validation of training."""
    data: str
    """The data set; empty for that of the run's recipe."""
    split: str
    epoch: int
    views: tuple[int, int]
    settings: tuple[str, ...] = ()
    """What else was not as in the run's recipe, as `section.key=value`."""
    clips: int
    top1: Percent
    top5: Percent
    mean_class_accuracy: Percent | None = None


def record_result(run: Run, result: Evaluation, request: EvaluateRequest, trained: TrainedModel) -> None:
    """Appends a result to the run. A run that cannot be written is left as it is, with a warning.

    Args:
        run: the run.
        result: what was measured.
        request: what was asked for.
        trained: what was evaluated, with the recipe by which its clips were read.
    """
    line = Result(
        date=time.strftime("%Y-%m-%d"),
        data=str(request.data) if request.data else "",
        split=request.split,
        epoch=trained.epoch,
        views=trained.recipe.clip.views,
        settings=tuple(setting for setting in request.overrides if not setting.startswith("clip.views=")),
        clips=result.clips,
        top1=result.top1,
        top5=result.top5,
        mean_class_accuracy=result.mean_class_accuracy,
    )
    try:
        with run.results_file.open("a", encoding="utf-8") as file:
            file.write(f"{line.model_dump_json()}\n")
    except OSError as error:
        logger.warning(f"the result is not noted for a model card: '{run.results_file}': {error.strerror or error}")


def results_of(run: Run, recipe: Recipe, epoch: int) -> list[Result]:
    """What `evaluate` measured of a checkpoint, the newest first, and then its validation in training.

    Args:
        run: trained or imported.
        recipe: of the run.
        epoch: of the checkpoint.
    """
    found = []
    for line in read_metrics(run.metrics_file):
        if line["epoch"] == epoch and isinstance(line.get("validation"), dict):
            facts = {"data": "", "split": "validation", "epoch": epoch, "views": recipe.clip.views}
            with contextlib.suppress(ValidationError):
                found.append(Result.model_validate(facts | line["validation"]))
    noted: list[Result] = []
    if run.results_file.is_file():
        for number, text in enumerate(run.results_file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                noted.append(Result.model_validate_json(text))
            except ValidationError as error:
                logger.warning(f"{run.results_file}, line {number}: not a result ({one_line(error)}); it is left out")
    return [*(result for result in reversed(noted) if result.epoch == epoch), *found]
