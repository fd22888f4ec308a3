"""Settings of Sphinx, which makes the documentation: scripts/docs.sh"""

from __future__ import annotations

import json
from pathlib import Path

from sphinx.application import Sphinx

from ssv2rt import __version__
from ssv2rt.core.describe_recipes import describe_recipe

project, author, release = "ssv2rt", "the ssv2rt authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "ssv2rt"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide.css"]
highlight_language = "none"  # of blocks that name none
exclude_patterns = ["_build", "gpu"]
html_extra_path = ["preview.png", "preview-dark.png", "report.png", "report-dark.png"]  # pages name them in HTML
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_preserve_defaults = True
autodoc_class_signature = "separated"  # objects are made by functions, not by users
default_role = "literal"  # `score` in a docstring is code
smartquotes = False  # --data is no dash


def settings_page() -> str:
    """The reference of all settings, from the typed settings themselves."""
    lines = [
        "# Settings",
        "",
        "Every setting of training and engine recipes. `ssv2rt recipes NAME` shows those of a recipe.",
    ]
    for kind, recipe in (("Training recipes", "demo"), ("Engine recipes", "int8")):
        lines += ["", f"## {kind}"]
        section = ""
        for entry in describe_recipe(recipe):
            name = entry["setting"]
            if (table := name.rpartition(".")[0]) != section:
                section = table
                lines += ["", f"### {kind.split()[0]}: `[{section}]`", ""]
            default = f" Default: `{json.dumps(entry['default'])}`." if entry["default"] is not None else ""
            lines += [f"`{name}`", f": {entry['meaning']} Allowed: {entry['allowed']}.{default}", ""]
    return "\n".join(lines) + "\n"


myst_enable_extensions.append("deflist")
_page = Path(__file__).with_name("settings.md")
if not _page.exists() or _page.read_text("utf-8") != settings_page():
    _page.write_text(settings_page(), "utf-8")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", lambda app, what, name, *_: name in ("__init__", "__new__") or None)
