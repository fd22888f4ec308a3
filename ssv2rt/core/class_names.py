"""Matches class names, such as those of a data set and those of a network, in whatever order and number either has them.

Names match if they are equal, or differ only in Unicode normalization (a composed or a decomposed é) or in spaces at their
ends. Names that differ in case do not match, but are suggested.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ssv2rt.core.errors import UserError, nearest

UNKNOWN = -1
"""Stands for the class number of a name that matches no class."""
_MOST_NAMED = 3
"""Names in a message."""


@dataclass(frozen=True)
class ClassMatch:
    """Which class of a network each name is."""

    names: tuple[str, ...]
    """N names, each once."""
    classes: tuple[str, ...]
    """Class names of the network."""
    numbers: np.ndarray
    """int32 (N,): a class number of the network, or `UNKNOWN` for a name that it does not know."""

    @cached_property
    def unknown(self) -> tuple[str, ...]:
        """The names that the network does not know."""
        return tuple(name for name, number in zip(self.names, self.numbers, strict=True) if number == UNKNOWN)

    def unknown_text(self) -> str:
        """The first unknown names, each with the class that may be meant, and how many more there are."""
        meant = {name: self.suggestion(name).removeprefix("; ") for name in self.unknown[:_MOST_NAMED]}
        named = [f"'{name}' ({text})" if text else f"'{name}'" for name, text in meant.items()]
        rest = len(self.unknown) - len(named)
        return ", ".join(named) + (f" and {rest} more" if rest else "")

    def spelling_text(self, data: str, network: str) -> str:
        """How many names match a class that is not spelled exactly the same, as a message; empty if none does."""
        pairs = zip(self.names, self.numbers, strict=True)
        alike = [(name, self.classes[number]) for name, number in pairs if number >= 0 and name != self.classes[number]]
        if not alike:
            return ""
        (name, known), *_ = alike
        return (
            f"class names of {data} that differ from those of {network} only in Unicode normalization or in spaces at their "
            f"ends are taken to be the same: {len(alike)}, such as {name!a} and {known!a}"
        )

    def none_known(self, data: str, network: str) -> UserError:
        """The error if the network knows none of the names."""
        return UserError(
            f"no class of {data} is a class of {network}: {self.unknown_text()}; "
            f"{network} has {_listed(self.classes)}; give data with these classes"
        )

    def suggestion(self, name: str) -> str:
        """`; did you mean 'x'?` with the class that differs only in case, or else the closest one; "" if none is close."""
        folded = _key(name).casefold()
        close = next((known for known in self.classes if _key(known).casefold() == folded), None)
        return f"; did you mean '{close}'?" if close else nearest(name, list(self.classes))


def match_classes(names: Sequence[str], classes: Sequence[str]) -> ClassMatch:
    """Finds the class of each name; see the module's docstring.

    Args:
        names: each once, in any order.
        classes: class names of a network.

    Raises:
        UserError: a name fits several classes.
    """
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    for number, name in enumerate(classes):
        exact.setdefault(name, []).append(number)
        alike.setdefault(_key(name), []).append(number)
    numbers = np.full(len(names), UNKNOWN, np.int32)
    for at, name in enumerate(names):
        found = exact.get(name) or alike.get(_key(name), [])
        if len(found) > 1:
            first, second = found[:2]
            raise UserError(
                f"the class name {name!r} fits the classes {first} and {second} of the network, {classes[first]!r} and "
                f"{classes[second]!r}; classes need different names to be told apart"
            )
        if found:
            numbers[at] = found[0]
    return ClassMatch(tuple(names), tuple(classes), numbers)


def _key(name: str) -> str:
    """What names that match have in common."""
    return unicodedata.normalize("NFC", name).strip()


def _listed(names: Sequence[str]) -> str:
    """The first names in quotes, and how many more there are."""
    rest = len(names) - _MOST_NAMED
    return ", ".join(f"'{name}'" for name in names[:_MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
