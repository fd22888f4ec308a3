"""Writes a report as one HTML file that opens without network.

The content is JSON inside the page. The page's script makes elements of it, and sets all text as text, so that names and
labels from data are shown as they are, whatever characters they have.
"""

from __future__ import annotations

import json
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

from ssv2rt import __version__
from ssv2rt.core.atomic_files import write_text
from ssv2rt.core.errors import UsageError, os_errors_as_user_errors


def check_report_name(path: Path) -> None:
    """Raises UsageError unless a report can be written under this name."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"'{path}': a report is a web page; give a name that ends in .html")
    if path.is_dir():
        raise UsageError(f"'{path}' is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise UsageError(f"'{path}': no folder '{path.parent}'; make it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"'{path}': '{path.parent}' cannot be written; choose another folder")


def write_page(path: Path, content: dict[str, Any]) -> None:
    """Writes a report. A file of that name is replaced.

    Args:
        path: the .html file.
        content: see `static/report.js`. "title" is the page's title, and "sections" its parts.

    Raises:
        UserError: it cannot be written.
    """
    static = resources.files("ssv2rt.report.html") / "static"
    template, style, script = ((static / f"report.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    # Within a script element, "</" would end it. Unpaired surrogates, of file names that are not UTF-8, are no text.
    text = json.dumps(_finite(content | {"version": __version__}), ensure_ascii=True, separators=(",", ":"))
    data = text.replace("<", "\\u003c")
    page = template.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script).replace("/*DATA*/", data)
    with os_errors_as_user_errors(f"cannot write '{path}'", "choose another --out"):
        write_text(path, page)


def _finite(value: Any) -> Any:
    """The same content with None in place of numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
