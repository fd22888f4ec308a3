"""The base class of the sections of a recipe, and the one-line messages about invalid settings."""

from __future__ import annotations

import math
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ssv2rt.core.errors import UsageError, nearest

R = TypeVar("R", bound=BaseModel)


class Section(BaseModel):
    """One table of a recipe. An unknown key is an error. Values do not change once read.

    Each field is a setting, and the docstring below it is its meaning, which `ssv2rt recipes NAME` prints with the allowed
    values and the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def validated(model: type[R], settings: dict[str, Any]) -> R:
    """Validates plain values as a section.

    Raises:
        UsageError: a value out of range.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        raise UsageError(explain(error, model)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first error as one line: `section.key = value: what is allowed`."""
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: Any = model
        for part in problem["loc"][:-1]:
            section = _section(section, str(part))
        allowed = list(section.model_fields)
        last = str(problem["loc"][-1])
        hint = nearest(last, allowed) or f"; there are: {', '.join(allowed)}"
        return f"'{where}' is not a setting{hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message.replace("Input should be", "must be")
    value = problem["input"]
    if isinstance(value, (dict, BaseModel)):
        return f"{where}: {message}" if where else message
    if isinstance(value, float) and not math.isfinite(value):
        message = "must be a finite number"
    return f"{where} = {value!r}: {message}"


def _section(model: Any, key: str) -> Any:
    annotation = model.model_fields[key].annotation
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
