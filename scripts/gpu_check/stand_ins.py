"""Empty modules in place of packages that ssv2rt imports at once, and that nothing here makes use of."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

NAMES = ("tomlkit", "platformdirs")
"""tomlkit reads and writes recipes; platformdirs finds the user's cache, which is `SSV2RT_CACHE` here."""


def install() -> None:
    """Puts them in place where the packages are not installed."""
    for name in NAMES:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = ModuleType(name)
