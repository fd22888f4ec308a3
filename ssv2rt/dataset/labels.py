"""Reads SSv2's class names, and finds the class that a mirrored clip belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ssv2rt.core.errors import UserError

NO_MIRROR = -1
"""Marks a class in `mirrored_labels` whose clips must not be mirrored."""

_SIDES = {"left": "right", "right": "left"}
_SIDE = re.compile(
    r"(?:(?<![A-Za-z])(?:[Ll]eft|[Rr]ight|LEFT|RIGHT)|(?<=[a-z])(?:Left|Right))(?=wards?(?![a-z])|(?![a-z]))"
)
"""Matches left or right as a word, also in push_left, PushLeft, left1 and leftwards, but not in upright or bright."""


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, from a file `{"name": "number", ...}`.

    Raises:
        UserError: the file is malformed, or the numbers are not 0 to n-1.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not table:
        raise UserError(f'{path}: not SSv2\'s label list; expected {{"label text": "number", ...}}')
    try:
        numbers = {int(str(number)): name for name, number in table.items()}
    except ValueError:
        raise UserError(f"{path}: not SSv2's label list; every label needs a whole number, as a string") from None
    if sorted(numbers) != list(range(len(table))):
        raise UserError(f"{path}: label numbers must be 0 to {len(table) - 1}, each once")
    return check_text(tuple(numbers[index] for index in range(len(numbers))), path)


def check_text(names: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """The same names; raises UserError if one holds a lone surrogate, which JSON can, and no other file."""
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{path}: the label {name!r} is no Unicode text; write it anew") from None
    return names


def class_of_template(template: str) -> str:
    """The class name of an annotation's `template`: the text without its square brackets.

    >>> class_of_template("Pushing [something] from left to right")
    'Pushing something from left to right'
    """
    return template.replace("[", "").replace("]", "")


def mirrored_labels(names: Sequence[str]) -> np.ndarray:
    """The class of each class's clips after they are mirrored left to right.

    A class that mentions neither side keeps its number. Otherwise it maps to the class whose name has left and right
    swapped, or to `NO_MIRROR` if there is no such class.

    Returns:
        int32 (classes,): a class number, or `NO_MIRROR`.
    """
    index = {name.lower(): number for number, name in enumerate(names)}
    result = np.arange(len(names), dtype=np.int32)
    for number, name in enumerate(names):
        if _SIDE.search(name):
            twin = _SIDE.sub(lambda match: _SIDES[match.group().lower()], name).lower()
            result[number] = index.get(twin, NO_MIRROR)
    return result


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}; download it again") from None
