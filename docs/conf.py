"""Settings of Sphinx, which makes the documentation: scripts/docs.sh"""

from ssv2rt import __version__

project, author, release = "ssv2rt", "the ssv2rt authors", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "ssv2rt"
exclude_patterns = ["_build", "gpu"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
nitpicky = False
