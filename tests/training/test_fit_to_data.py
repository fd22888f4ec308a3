"""`train.fit_to_data`: settings that follow from the number of training clips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssv2rt.core.recipe_files import load_recipe, recipe_names
from ssv2rt.core.recipes import Recipe
from ssv2rt.training.fit_to_data import fit_to_data, set_by, with_epochs

FIT = ("train.fit_to_data=true",)


def fitted(clips: int, *overrides: str, processes: int = 1) -> Recipe:
    recipe, original = (load_recipe("ssv2-resnet3d18", (*FIT, *changes)) for changes in (overrides, ()))
    return fit_to_data(recipe, clips, processes=processes, given=set_by(overrides), original=original)[0]


def test_a_small_set_gets_small_steps_a_lower_learning_rate_and_more_epochs() -> None:
    recipe = load_recipe("ssv2-resnet3d18", FIT)
    chosen, text = fit_to_data(recipe, 33)
    train = chosen.train
    assert (train.batch_size, train.accumulate, train.epochs, train.warmup_epochs) == (8, 1, 80, 4.0)
    assert train.learning_rate == pytest.approx(0.1 * 8 / 64) and not train.fit_to_data
    for setting in (
        "33 training clips",
        "accumulate = 1",
        "learning_rate = 0.0125",
        "epochs = 80",
        "warmup_epochs = 4",
    ):
        assert setting in text
    assert fit_to_data(chosen, 33) == (chosen, "")  # as a resumed or repeated run has it


@pytest.mark.parametrize("name", recipe_names("pipelines"))
def test_a_large_set_is_trained_with_the_recipe_as_it_is(name: str) -> None:
    recipe = load_recipe(name, FIT)
    chosen, text = fit_to_data(recipe, 168_913, processes=8)
    assert not text and chosen.train == recipe.train.model_copy(update={"fit_to_data": False})
    assert (chosen.data, chosen.clip, chosen.augment, chosen.model) == (
        recipe.data,
        recipe.clip,
        recipe.augment,
        recipe.model,
    )


@pytest.mark.parametrize(
    ("overrides", "batch", "accumulate", "rate"),
    [
        (("train.batch_size=2",), 2, 4, 0.0125),
        (("train.accumulate=2",), 4, 2, 0.0125),
        (("train.batch_size=16", "train.accumulate=1"), 16, 1, 0.025),
        (("train.batch_size=16", "train.accumulate=1", "train.learning_rate=0.3"), 16, 1, 0.3),
        (("train.scale_rate=none",), 8, 1, 0.1),
        (("train.scale_rate=sqrt",), 8, 1, 0.0354),
    ],
)
def test_given_settings_stay(overrides: tuple[str, ...], batch: int, accumulate: int, rate: float) -> None:
    train = fitted(36, *overrides).train
    assert (train.batch_size, train.accumulate) == (batch, accumulate)
    assert train.learning_rate == pytest.approx(rate)


def test_a_recipe_has_its_own_least_number_of_steps() -> None:
    assert fitted(36, "train.min_steps=300").train.epochs == 60
    assert fitted(36, "train.min_steps=1").train.epochs == 50
    assert fit_to_data(load_recipe("finetune"), 36)[0].train.epochs == 30


def test_small_is_what_is_small_for_the_recipe_without_given_settings() -> None:
    assert fitted(80, "train.batch_size=1").train.learning_rate == pytest.approx(0.1 * 16 / 64)
    assert fitted(168_913, "train.epochs=1", "train.warmup_epochs=0", "train.batch_size=4").train.learning_rate == 0.1


def test_given_epochs_and_warm_up_stay() -> None:
    assert fitted(36, "train.epochs=3").train.epochs == 3
    assert fitted(36, "train.epochs=3").train.warmup_epochs == 2
    assert fitted(36, "train.warmup_epochs=0").train.warmup_epochs == 0
    assert fitted(36, "train.batch_size=auto").train.update_clips == 8
    assert fitted(36, "train.batch_size=auto", "train.update_clips=12").train.learning_rate == pytest.approx(0.0188)


@given(st.integers(4, 5000), st.integers(1, 4), st.sampled_from(["ssv2-resnet3d18", "ssv2-i3d", "demo"]))
def test_every_set_fills_its_steps_and_has_enough_of_them(clips: int, processes: int, name: str) -> None:
    recipe = load_recipe(name, FIT)
    train = fit_to_data(recipe, clips, processes=processes)[0].train
    step = train.batch * train.accumulate
    assert step * processes <= max(clips, 4 * processes) and step <= recipe.train.batch * recipe.train.accumulate
    assert train.epochs * -(-clips // (step * processes)) >= train.min_steps
    assert train.warmup_epochs <= train.epochs / 5
    assert type(train).model_validate(train.model_dump()) == train


def test_another_number_of_epochs_keeps_the_shares_of_the_schedule() -> None:
    recipe = load_recipe("ssv2-resnet3d18", ("train.schedule=steps", "train.step_epochs=[20,40]"))
    train = with_epochs(recipe, 10, frozenset()).train
    assert (train.epochs, train.warmup_epochs, train.step_epochs) == (10, 0.4, (4, 8))
    assert with_epochs(recipe, 60, frozenset({"train.step_epochs"})).train.step_epochs == (20, 40)
