# SPDX-License-Identifier: Apache-2.0
"""Make code in running text a link where it has a page: a public name, a package, a file."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from docutils import nodes
from gather import page_table
from names import PACKAGES, meant
from sphinx import addnodes
from sphinx.application import Sphinx

# ``optdiff.MetaAdam``, also with arguments: ``optcore.adam(lr=0.1)``.
NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", re.DOTALL)
ABOUT = re.compile(r"([a-z]+(?:-[a-z]+)?):")  # the title of a section: ``optcore: one step``
CODE = re.compile(r'<code class="[^"]*\bliteral\b[^"]*">.*?</code>', re.DOTALL)
LONG = re.compile(r"(?<=>)[^<>\s]{22,}(?=<)")
JOINT = re.compile(r"(?<=\w)([/_:]+|\.(?!(?:py|md|ipynb)\b))(?=\w)")
PAGE_OF = {name.replace("_", "-"): f"packages/{name.replace('_', '-')}" for name in PACKAGES}


def link_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Wrap inline code that names something with a place on the site into a link to it."""
    objects = app.env.domains.python_domain.objects
    before: dict[nodes.Node, str] = {}  # a paragraph or cell, and the module last named in it
    for node in list(doctree.findall(nodes.literal)):
        text = node.astext()
        page = pages().get(text, PAGE_OF.get(text) if in_prose(docname) else None)
        place = (page, "") if page in app.env.found_docs else None
        found = NAME.fullmatch(text)
        if place is None and found:
            own = section_of(node) or package_of(docname)
            full = meant(found[1], before.get(node.parent), own, objects)
            if full and (telling(text) or not docname.startswith("reference/")):
                place = (objects[full].docname, objects[full].node_id)
            if "." in found[1]:
                before[node.parent] = (full or found[1]).rpartition(".")[0]
        if place is not None and linkable(node):
            wrap(app, node, docname, *place)


def in_prose(docname: str) -> bool:
    """Whether a page is one to read, on which a package's name may be a link."""
    return not docname.startswith(("reference/", "changelogs/"))


def section_of(node: nodes.Node) -> str:
    """Return the package that begins the title of a section around a node."""
    above = node.parent
    while above is not None:
        if isinstance(above, nodes.section):
            found = ABOUT.match(above[0].astext())
            if found and found[1] in PAGE_OF:
                return found[1].replace("-", "_")
        above = above.parent
    return ""


def telling(text: str) -> bool:
    """Whether code cannot be taken for an argument's name: ``mask`` is one, and a function."""
    return bool(re.search(r"[A-Z._(]", text))


def package_of(docname: str) -> str:
    """Return the package that a page is about, in whose words its short names are."""
    sources = (source for source, page in pages().items() if page == docname)
    folders = next(sources, docname).split("/")
    name = folders[1].replace("-", "_") if folders[0] in ("packages", "reference") else ""
    return name if name in PACKAGES and not docname.startswith("migrating/") else ""


@cache
def pages() -> dict[str, str]:
    """Map files of the repository to the pages made from them."""
    return {source: target.rpartition(".")[0] for source, target in page_table().items()}


def linkable(node: nodes.literal) -> bool:
    """Whether code stands in running text, outside of links, headings and what it documents."""
    above = node.parent
    while above is not None:
        if isinstance(above, nodes.reference | nodes.title | addnodes.desc_signature):
            return False
        above = above.parent
    return True


def wrap(app: Sphinx, node: nodes.literal, docname: str, page: str, anchor: str) -> None:
    """Put a link around a node."""
    address = app.builder.get_relative_uri(docname, page) + (f"#{anchor}" if anchor else "")
    if page == docname:
        if not anchor:
            return
        address = f"#{anchor}"
    link = nodes.reference("", "", internal=True, refuri=address, classes=["code-link"])
    node.replace_self(link)
    link += node


def let_break(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let long names in running text and tables break after slashes, underscores and dots."""
    if "body" in context:
        context["body"] = CODE.sub(
            lambda code: LONG.sub(lambda word: JOINT.sub(r"\1<wbr>", word[0]), code[0]),
            context["body"],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx when to make the links, after its own, and when to let names break."""
    app.connect("doctree-resolved", link_code)
    app.connect("html-page-context", let_break)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
