"""Reads SSv2's class names, and finds the class that a mirrored clip belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ssv2rt.core.errors import UserError

NO_MIRROR = -1
"""Marks a class in `mirrored_labels` whose clips must not be mirrored."""

_SIDES = {"left": "right", "right": "left"}
_LETTER_SIDES = {"L": "R", "R": "L"}
_SIDE = re.compile(
    r"(?:(?<![A-Za-z])(?:[Ll]eft|[Rr]ight|LEFT|RIGHT)|(?<=[a-z])(?:Left|Right))(?=wards?(?![a-z])|(?![a-z]))"
)
"""Matches left or right as a word, also in push_left, PushLeft, left1 and leftwards, but not in upright or bright."""
_TURN = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))(?P<against>(?i:counter|anti)[-_ ]?)?(?i:clockwise)(?![a-z])"
    r"|(?<![A-Za-z])(?P<short>[Cc]?[Cc][Ww])(?![A-Za-z])"
)
"""Matches clockwise and its opposites counterclockwise, counter-clockwise, anticlockwise, ..., and cw and ccw as words."""
_LETTER = re.compile(r"(?<=[A-Za-z0-9][-_ ])[A-Z](?![A-Za-z0-9])|(?<![A-Za-z0-9])[A-Z](?=[-_ ][A-Za-z0-9])")
"""Matches a capital letter that stands alone beside other words, as in turn_L."""


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


def read_class_names(path: Path) -> tuple[str, ...]:
    """Class names in the order of their numbers, from a file of another program.

    The file is text with a name on each line, a JSON list of names, or a JSON object: SSv2's `{"name": "number"}`, the
    same with numbers as numbers (`label2id`), `{"number": "name"}` (`id2label`), or a `config.json` of Hugging Face that
    has one or both of the latter under these keys. A byte order mark is skipped.

    Raises:
        UserError: it is none of these, names no class, names one twice, or does not number them 0 to n-1.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the labels '{path}': {error.strerror}; check the path") from None
    except UnicodeDecodeError:
        raise UserError(f"cannot read the labels '{path}': it is not UTF-8 text; save it as UTF-8") from None
    names = _class_names_of(text, path)
    if not names:
        raise UserError(f"'{path}' names no class; give a file with the name of every class of the network")
    if twice := _first_duplicate(names):
        raise UserError(f"'{path}' names the class '{twice}' twice; give every class a name of its own")
    return check_text(names, path)


def _class_names_of(text: str, path: Path) -> tuple[str, ...]:
    try:
        value = json.loads(text, object_pairs_hook=lambda pairs: _without_duplicates(pairs, path))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith(("{", '["')):
            raise UserError(f"{path}: not JSON, although it begins like it: {error}; get it again") from None
        return _lines(text, path)
    if isinstance(value, list):
        if not all(isinstance(name, str) for name in value):
            raise UserError(f'{path}: a list of labels holds nothing but names, like ["cat", "dog"]; mend it')
        return tuple(value)
    if not isinstance(value, dict):
        return _lines(text, path)
    found = [_numbered(value[key], path) for key in ("id2label", "label2id") if isinstance(value.get(key), dict)]
    found = found or [_numbered(value, path)]
    if found[0] != found[-1]:
        raise UserError(f"{path}: 'id2label' and 'label2id' disagree; remove the one that is wrong")
    return found[0]


_NUMBERED = re.compile(r"\d+[;,\t]|.*[;\t]\s*\d+$")


def _lines(text: str, path: Path) -> tuple[str, ...]:
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if names and all(_NUMBERED.match(name) for name in names):
        raise UserError(
            f"{path}: its lines have numbers beside the names, such as {names[0]!r}; give a class name alone on each line"
        )
    return names


def _numbered(table: dict[str, object], path: Path) -> tuple[str, ...]:
    """Class names from `{"name": number}` or `{"number": "name"}`, whichever it is."""
    numbers = {str(number) for number in range(len(table))}
    by_name = {str(number): name for name, number in table.items()}
    by_number = {number: name for number, name in table.items() if isinstance(name, str)}
    readings = [
        tuple(reading[str(number)] for number in range(len(table)))
        for reading in (by_name, by_number)
        if reading.keys() == numbers
    ]
    if not readings:
        raise UserError(
            f'{path}: not a label list; expected {{"name": number}} or {{"number": "name"}}, with the numbers 0 to '
            f"{len(table) - 1}, each once"
        )
    if readings[0] != readings[-1]:
        raise UserError(
            f"{path}: the names are numbers, too, and it does not say which are which; give a list of names"
        )
    return readings[0]


def _without_duplicates(pairs: list[tuple[str, object]], path: Path) -> dict[str, object]:
    if twice := _first_duplicate([key for key, _ in pairs]):
        raise UserError(f"'{path}' has the key '{twice}' twice; keep one of them")
    return dict(pairs)


def _first_duplicate(names: Sequence[str]) -> str:
    """The first name that stands twice; empty if there is none."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def class_of_template(template: str) -> str:
    """The class name of an annotation's `template`: the text without its square brackets.

    >>> class_of_template("Pushing [something] from left to right")
    'Pushing something from left to right'
    """
    return template.replace("[", "").replace("]", "")


def mirrored_labels(names: Sequence[str]) -> np.ndarray:
    """The class of each class's clips after they are mirrored left to right.

    A class that mentions neither a side nor a sense of rotation keeps its number. Otherwise it maps to the class whose name
    has left and right, and clockwise and counterclockwise, swapped, or to `NO_MIRROR` if there is no such class. A lone L or R
    counts as a side where names that are otherwise the same have both, and no third letter: turn_L and turn_R, but not the
    letters of an alphabet.

    Returns:
        int32 (classes,): a class number, or `NO_MIRROR`.
    """
    letters: dict[str, list[set[str]]] = {}
    for name in names:
        found = _LETTER.findall(name)
        for seen, letter in zip(letters.setdefault(_without_sides(name), [set() for _ in found]), found, strict=True):
            seen.add(letter)
    index = {_in_one_spelling(name): number for number, name in enumerate(names)}
    result = np.arange(len(names), dtype=np.int32)
    for number, name in enumerate(names):
        swapped = [
            _LETTER_SIDES[letter] if seen == set("LR") else letter
            for letter, seen in zip(_LETTER.findall(name), letters[_without_sides(name)], strict=True)
        ]
        mirror = _SIDE.sub(lambda match: _SIDES[match.group().lower()], _with_letters(name, swapped))
        mirror = _in_one_spelling(mirror, turned=True)
        if mirror != _in_one_spelling(name):
            result[number] = index.get(mirror, NO_MIRROR)
    return result


def _with_letters(name: str, letters: Iterable[str]) -> str:
    """A name with other lone letters, in order."""
    left = iter(letters)
    return _LETTER.sub(lambda match: next(left), name)


def _without_sides(name: str) -> str:
    """What a name has in common with its mirror."""
    return _TURN.sub("\1", _SIDE.sub("\2", _LETTER.sub("\0", name))).lower()


def _in_one_spelling(name: str, turned: bool = False) -> str:
    """A name in lower case, with one spelling of the senses of rotation; swapped if it is `turned`."""

    def replaced(match: re.Match[str]) -> str:
        against = bool(match["against"]) or len(match["short"] or "") == 3
        return "clockwise" if against == turned else "counterclockwise"

    return _TURN.sub(replaced, name).lower()


def flips_in_words(names: Sequence[str], most: int = 10) -> str:
    """What horizontal flips do to the labels of these classes, in one line, with at most `most` names of each kind."""
    mirrored = mirrored_labels(names)
    pairs = [f"'{name}' and '{names[at]}'" for number, name in enumerate(names) if (at := mirrored[number]) > number]
    fixed = [f"'{name}'" for name, at in zip(names, mirrored, strict=True) if at == NO_MIRROR]

    def listed(words: list[str]) -> str:
        return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")

    if pairs:
        text = f"horizontal flips swap the labels {listed(pairs)}; other classes keep theirs"
    elif fixed:
        text = "horizontal flips keep the labels of the classes that are flipped"
    else:
        text = "horizontal flips keep every label, as no two classes name opposite sides"
    text += f"; never flipped, as the other side is no class: {listed(fixed)}" if fixed else ""
    return f"{text} (augment.flip = never turns flips off)"


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
