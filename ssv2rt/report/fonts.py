"""Fonts for class names in any script: DejaVu Sans, and others of this machine for the letters that it lacks."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ssv2rt.core.log import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


def best_font(text: str) -> str:
    """The path of DejaVu Sans if it has all letters of a text, or else of the font of this machine that has the most."""
    letters = frozenset(map(ord, text))
    others = _other_fonts() if letters - letters_of(plain_font()) else ()
    best = max((plain_font(), *others), key=lambda path: len(letters & letters_of(path)))
    _say_missing(letters - letters_of(best))
    return best


def fonts_of(text: str) -> list[str]:
    """Paths of fonts that together have the letters of a text, as far as this machine has them: first DejaVu Sans."""
    paths = [plain_font()]
    missing = frozenset(map(ord, text)) - letters_of(paths[0])
    while missing:
        best = max(_other_fonts(), key=lambda path: len(missing & letters_of(path)), default=paths[0])
        if not missing & letters_of(best):
            break
        paths.append(best)
        missing -= letters_of(best)
    _say_missing(missing)
    return paths


@contextmanager
def with_fonts(figure: Figure) -> Iterator[None]:
    """Within the block, a figure is drawn with fonts that have the letters of all its text."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font
    from matplotlib.text import Text

    texts = figure.findobj(Text)
    paths = fonts_of("".join(text.get_text() for text in texts if isinstance(text, Text)))
    if len(paths) > 1:
        for path in paths[1:]:
            fontManager.addfont(path)
        families = [FT2Font(path).family_name for path in paths]
        for text in texts:
            text.set_family(families)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")  # which `_say_missing` has said
        yield


@functools.cache
def plain_font() -> str:
    """It comes with matplotlib, and has Latin, Greek, Cyrillic, Arabic and Hebrew letters, among others."""
    from matplotlib import get_data_path

    return os.path.join(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")


@functools.cache
def letters_of(path: str) -> frozenset[int]:
    """The letters of a font; none if it cannot be drawn in any size."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    try:
        ImageFont.truetype(path, 12)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _other_fonts() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(path for path in findSystemFonts() if letters_of(path)))


_said: set[int] = set()


def _say_missing(letters: frozenset[int]) -> None:
    """Tells, once of each letter, that no font of this machine has it."""
    missing = sorted(letter for letter in letters - _said if chr(letter).isprintable())
    _said.update(missing)
    if missing:
        logger.warning(
            f"no font of this machine has {len(missing)} of the letters in names, such as '{escape(chr(missing[0]))}', and "
            "pictures show boxes in their place; install a font that has them, such as one of the Noto fonts"
        )
