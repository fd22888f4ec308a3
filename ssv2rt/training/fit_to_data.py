"""`train.fit_to_data`: settings of a recipe that follow from the number of training clips, if these are few.

A recipe for a large set is no recipe for 36 clips: they may not fill one optimizer step, 50 epochs are few steps, and the
learning rate for 64 clips a step is too high for 8. Large sets are trained with the recipe as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from ssv2rt.core.recipes import Recipe
from ssv2rt.core.sections import validated
from ssv2rt.core.train_settings import Train
from ssv2rt.training.optimizer import rate_scale

MIN_STEPS_PER_EPOCH = 4
"""Optimizer steps. A set is small if the recipe has fewer of them in an epoch, before the last is filled up."""
MIN_CLIPS = 4
"""Clips in an optimizer step that are not gone below, as batch norm needs some."""
MIN_WARMUP = 0.05
"""Smallest share of the run for the warm-up, where the recipe has any."""


def set_by(overrides: Iterable[str]) -> frozenset[str]:
    """The keys of `--set section.key=value` overrides."""
    return frozenset(override.partition("=")[0].strip() for override in overrides)


def fit_to_data(
    recipe: Recipe,
    clips: int,
    *,
    processes: int = 1,
    given: frozenset[str] = frozenset(),
    original: Recipe | None = None,
) -> tuple[Recipe, str]:
    """Chooses the settings of a recipe for a small training split; see `train.fit_to_data`.

    Args:
        recipe: with `train.fit_to_data`; otherwise it is returned as it is.
        clips: usable training clips.
        processes: how many train together.
        given: keys such as `train.epochs` of settings that stay.
        original: the recipe without the given settings, which its learning rate belongs to; by default `recipe`.

    Returns:
        The recipe with `train.fit_to_data = false`, and what was chosen, as text; the text is empty if nothing was.
    """
    settings = recipe.train
    if not settings.fit_to_data:
        return recipe, ""
    changes = _changes(settings, (original or recipe).train, clips, processes, given)
    fitted = settings.model_copy(update={**changes, "fit_to_data": False})
    values = {name: getattr(fitted, name) for name in changes if getattr(fitted, name) != getattr(settings, name)}
    chosen = [
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}" for name, value in values.items()
    ]
    tail = "(--set gives others, train.fit_to_data = false those of the recipe)"
    text = f"settings for {clips} training clips: {', '.join(chosen)} {tail}" if chosen else ""
    return recipe.model_copy(update={"train": fitted}), text


def _changes(settings: Train, original: Train, clips: int, processes: int, given: frozenset[str]) -> dict[str, object]:
    """Settings for this number of clips; none if the original recipe has enough optimizer steps."""
    own = original.update_clips if original.batch_size == "auto" else original.batch_size * original.accumulate
    steps = original.epochs * -(-clips // (own * processes))
    if own * processes * MIN_STEPS_PER_EPOCH <= clips and steps >= settings.min_steps:
        return {}
    batches = _batches(settings, _step_clips(clips // processes, own), given)
    if settings.batch_size == "auto":
        step = batches.get("update_clips", settings.update_clips)
    else:
        step = batches.get("batch_size", settings.batch_size) * batches.get("accumulate", settings.accumulate)
    changes: dict[str, object] = {**batches}
    if step != own and "train.learning_rate" not in given:
        changes["learning_rate"] = float(f"{settings.learning_rate * rate_scale(settings, step / own):.3g}")
    least = -(-settings.min_steps // -(-clips // (step * processes)))
    if "train.epochs" not in given and least > settings.epochs:
        changes |= _epochs(settings, least, given)
        share = settings.warmup_epochs / settings.epochs
        if 0 < share < MIN_WARMUP and "train.warmup_epochs" not in given:
            changes["warmup_epochs"] = MIN_WARMUP * least
    return changes


def with_epochs(recipe: Recipe, epochs: int, given: frozenset[str]) -> Recipe:
    """A recipe for another number of epochs. The warm-up and the steps of the learning rate keep their share, unless given.

    Where the epochs are too few for steps between them, the schedule becomes a cosine.
    """
    changes = _epochs(recipe.train, epochs, given)
    return recipe.model_copy(update={"train": validated(Train, {**recipe.train.model_dump(), **changes})})


def _epochs(settings: Train, epochs: int, given: frozenset[str]) -> dict[str, object]:
    changes: dict[str, object] = {"epochs": epochs}
    longer = epochs / settings.epochs
    if "train.warmup_epochs" not in given:
        changes["warmup_epochs"] = float(f"{longer * settings.warmup_epochs:.3g}")
    if "train.step_epochs" not in given:
        scaled = {round(longer * epoch) for epoch in settings.step_epochs} - {0, epochs}
        changes["step_epochs"] = tuple(sorted(scaled))
        if settings.step_epochs and not scaled:  # too few epochs to have steps between them
            changes["schedule"] = "cosine"
    return changes


def _step_clips(clips: int, own: int) -> int:
    """Clips of an optimizer step: those of the recipe, or a power of two of which an epoch has at least four."""
    most = max(1, clips // MIN_STEPS_PER_EPOCH)
    if own <= most:
        return own
    return max(min(MIN_CLIPS, own, max(1, clips)), 1 << (most.bit_length() - 1))


def _batches(settings: Train, step: int, given: frozenset[str]) -> dict[str, int]:
    """The batch size and the batches accumulated for `step` clips, as far as they are not given."""
    if settings.batch_size == "auto":
        return {} if "train.update_clips" in given else {"update_clips": step}
    if "train.batch_size" in given:
        return {} if "train.accumulate" in given else {"accumulate": max(1, step // settings.batch_size)}
    if "train.accumulate" in given:
        return {"batch_size": max(1, step // settings.accumulate)}
    batch = next(size for size in range(min(settings.batch_size, step), 0, -1) if step % size == 0)
    return {"batch_size": batch, "accumulate": step // batch}
