"""Recipes: lookup by name, overrides with --set, and errors for invalid keys and values."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import dump_recipe, load_engine_recipe, load_recipe, recipe_names
from ssv2rt.core.recipes import EngineRecipe, Recipe, Train
from ssv2rt.core.sections import Section
from ssv2rt.models.registry import build_model


@pytest.mark.parametrize("name", recipe_names("pipelines"))
def test_shipped_training_recipes_load(name: str) -> None:
    recipe = load_recipe(name)
    assert isinstance(recipe, Recipe)
    with torch.device("meta"):
        assert build_model(recipe.model, 174).head.out_features == 174


@pytest.mark.parametrize("name", recipe_names("engines"))
def test_shipped_engine_recipes_have_the_precision_of_their_name(name: str) -> None:
    assert load_engine_recipe(name).engine.precision == name


def test_recipes_in_the_current_folder_take_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "demo.toml").write_text("[train]\nepochs = 77\n")
    assert load_recipe("demo").train.epochs != 77
    monkeypatch.chdir(tmp_path)
    assert load_recipe("demo").train.epochs == 77


def test_overrides_accept_toml_values_and_bare_words() -> None:
    recipe = load_recipe("demo", ("train.epochs=3", "train.optimizer=adamw", "augment.crop_scale=[0.5, 0.9]"))
    assert (recipe.train.epochs, recipe.train.optimizer, recipe.augment.crop_scale) == (3, "adamw", (0.5, 0.9))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "'train.epoch' is not a setting; did you mean 'epochs'?"),
        ("trian.epochs=3", "'trian' is not a setting; did you mean 'train'?"),
        ("train.batch_size=0", "train.batch_size = 0: must be greater than or equal to 1"),
        ("train.optimizer=lion", "must be 'sgd' or 'adamw'"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("train.epochs", "write section.key=value"),
        ("epochs=3", "write section.key=value"),
        ("augment.crop_scale=[1.0, 0.5]", "swap the two"),
        ("train.warmup_epochs=1000", "longer than the run"),
        ("augment.rand_magnitude=5", "rand_magnitude = 5 without operations: set rand_layers, too"),
        ("data.synthetic.clips=31", "even number"),
        ("train.epochs.more=1", "not a section"),
        ("train.epochs=true", "train.epochs = True"),
        ("train.epochs=1\ntrain.seed=4", "write section.key=value"),
        ("train.seed=99999999999999999999", "train.seed"),
        ("augment.crop_ratio=[1000, 1000]", "less than or equal to 10"),
        ("train.optimizer=lion", "train.optimizer = 'lion': must be"),
        ("train.step_epochs=[1]", "train: schedule = 'cosine' and step_epochs = [1]"),
    ],
)
def test_an_invalid_setting_is_reported_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        load_recipe("demo", (override,))
    assert message in str(error.value)
    assert "\n" not in str(error.value) and "demo.toml" not in str(error.value) and "--set" not in str(error.value)


@pytest.mark.parametrize("section", Section.__subclasses__(), ids=lambda section: section.__name__)
def test_every_setting_has_a_meaning(section: type[Section]) -> None:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            assert field.annotation.__doc__, name  # a table, whose settings have their own meanings
        else:
            assert field.description and field.description.endswith((".", ")")), name
    assert {Recipe, EngineRecipe} < {*Section.__subclasses__()}


def test_an_unknown_recipe_suggests_the_closest_name() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'dmeo'; did you mean 'demo'\?"):
        load_recipe("dmeo")
    with pytest.raises(UsageError, match="no recipe file './no.toml'"):
        load_recipe("./no.toml")


def test_a_file_that_is_not_toml_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[train\n")
    with pytest.raises(UsageError, match="not a TOML file"):
        load_recipe(str(path))


@settings(deadline=None)
@given(
    epochs=st.integers(1, 10**6),
    rate=st.floats(1e-9, 1e3),
    smoothing=st.floats(0, 0.99),
)
def test_a_dumped_recipe_reads_back_the_same(epochs: int, rate: float, smoothing: float) -> None:
    import tomlkit

    recipe = Recipe(train=Train(epochs=epochs, learning_rate=rate, label_smoothing=smoothing))
    assert Recipe.model_validate(tomlkit.parse(dump_recipe(recipe)).unwrap()) == recipe
