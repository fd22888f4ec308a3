"""The schedule of the learning rate, and parameters with a rate of their own."""

from pathlib import Path

import pytest
import torch

from ssv2rt.core.errors import UsageError
from ssv2rt.core.recipe_files import load_recipe
from ssv2rt.core.recipes import Model
from ssv2rt.core.train_settings import Train
from ssv2rt.models.registry import build_model
from ssv2rt.training.distributed import Group
from ssv2rt.training.optimizer import Schedule, build_optimizer, learning_rate
from ssv2rt.training.step import TrainingStep

CPU = Group(0, 1, torch.device("cpu"))


def test_the_cosine_is_that_of_the_whole_run() -> None:
    schedule = Schedule(Train(epochs=5, warmup_epochs=1.5, learning_rate=0.2), 10, processes=2)
    assert schedule.steps == 50
    for step in range(50):
        assert schedule(step) == learning_rate(step, steps=50, warmup=15, peak=0.4)


def test_steps_lower_the_learning_rate_after_the_epochs_given() -> None:
    settings = Train(epochs=6, warmup_epochs=1, learning_rate=1, schedule="steps", step_epochs=(3, 5), step_factor=0.1)
    rates = [Schedule(settings, 4)(step) for step in range(24)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1.0] * 8 + [0.1] * 8 + [0.01] * 4)


def test_a_continued_run_has_the_old_schedule_and_then_another_from_a_tenth_of_the_peak() -> None:
    old = Schedule(Train(epochs=3, warmup_epochs=1), 5)
    more = Schedule(Train(epochs=9, warmup_epochs=1, continued=(3, 5)), 5)
    assert [more(step) for step in range(15)] == [old(step) for step in range(15)]
    for start, end in ((15, 25), (25, 45)):
        part = [more(step) for step in range(start, end)]
        assert part[0] == pytest.approx(0.01) and part == sorted(part, reverse=True) and part[-1] < 0.001


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("train.step_epochs=[3]",), r"set epochs with 'steps', and step_epochs=\[\] with"),
        (("train.schedule=steps",), "set epochs with 'steps'"),
        (("train.schedule=steps", "train.step_epochs=[3,2]"), "must rise, and be below epochs = 7"),
        (("train.schedule=steps", "train.step_epochs=[7]"), "must rise, and be below epochs = 7"),
        (("train.continued=[7]",), "must rise, and be below epochs = 7"),
    ],
)
def test_impossible_schedules_are_refused(settings: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_recipe("demo", settings)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_classifier_has_a_learning_rate_of_its_own(name: str, tmp_path: Path) -> None:
    model = build_model(Model(width=4), 3)
    settings = Train(optimizer=name, head_rate=10, weight_decay=0.3, momentum=0)  # type: ignore[arg-type]
    step = TrainingStep(model, settings, "fp32", CPU)
    step.backward(
        torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8), torch.tensor([0, 1]), epoch=1, step=0, last=True
    )
    step.optimizer_step(0.01, "here")
    found = {id(p): group for group in step.optimizer.param_groups for p in group["params"]}
    assert len(found) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["lr"] == pytest.approx(0.1 if parameter_name.startswith("head.") else 0.01), parameter_name
        assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0.0)
    step.load_optimizer_state(step.optimizer.state_dict())


def test_without_a_head_rate_the_optimizer_has_the_groups_that_it_had() -> None:
    """So that checkpoints of earlier versions load."""
    groups = build_optimizer(build_model(Model(width=4), 3), Train()).param_groups
    assert len(groups) == 2 and all("rate_factor" not in group for group in groups)
