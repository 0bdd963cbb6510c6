# SPDX-License-Identifier: Apache-2.0
"""Write formulas as MathML: browsers render it by themselves, without scripts or network."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from tex import readable, spaced

LOGGER = logging.getLogger(__name__)


def mathml(node: nodes.Element, block: bool) -> str:
    """Return the formula of a node."""
    text = readable(node.astext().strip())
    try:
        return spaced(tex2mathml(text, as_block=block))
    except MathError as error:
        LOGGER.warning("%s: %s", error, text, location=node)
        return ""


def visit_inline(self: Any, node: nodes.math) -> None:
    """Write a formula in a line."""
    self.body.append(mathml(node, block=False))
    raise nodes.SkipNode


def visit_block(self: Any, node: nodes.math_block) -> None:
    """Write a formula of its own."""
    self.body.append(f'<div class="math-block">{mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx about the renderer."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None)
    )
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
