# SPDX-License-Identifier: Apache-2.0
"""Sphinx's settings; ``build.py`` gathers the pages and calls it."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from reference import TRAILING  # noqa: E402

project = "optstack"
author = "the authors of optstack"
html_title = "optstack"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "links",
    "mathml",
]
html_math_renderer = "mathml"
html_theme = "furo"
html_static_path = [str(HERE / "static"), str(HERE.parents[1] / "out/site-source/pictures")]
html_css_files = ["site.css"]
default_role = "code"
highlight_language = "text"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"
suppress_warnings = [
    "ref.python",  # a short type in a signature that two modules define
    "misc.highlighting_failure",  # cell magics are not Python
]
exclude_patterns = ["out/**"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88
napoleon_custom_sections = ["Differentiable", "Differs", "Reference", "State"]
napoleon_use_rtype = False
napoleon_use_ivar = True

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def quote_names(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Quote names that end with an underscore; leave out what Python says of named tuples."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    lines[:] = [TRAILING.sub(r"``\1``", line) for line in lines]


def setup(app: Sphinx) -> None:
    """Register what happens to docstrings."""
    app.connect("autodoc-process-docstring", quote_names)
