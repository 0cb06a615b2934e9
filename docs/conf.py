"""Sphinx settings; `make docs` builds with warnings as errors."""

project = "Flaxseed"
extensions = ["myst_parser"]
exclude_patterns: list[str] = []
html_theme = "furo"
html_title = "Flaxseed"
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
