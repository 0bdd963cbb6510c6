# SPDX-License-Identifier: Apache-2.0
"""Write the reference: a page per source file with all its public names, an index per package."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

from names import PACKAGES, Name, public_names

# A name like ``tree_map_`` in running text, which reStructuredText takes for a link.
TRAILING = re.compile(r"(?<![`\w.])([a-z]+(?:_[a-z]+)*_)(?=[ ,.;:)]|$)")


def write_reference(folder: Path) -> None:
    """Write the pages of all packages, and the page above them."""
    folder.mkdir(parents=True)
    lines = heading("Reference")
    lines += ["Every public name, package by package.", "", ".. toctree::", "   :maxdepth: 1", ""]
    for package in PACKAGES:
        write_package(folder / package, package)
        lines.append(f"   {package}/index")
    (folder / "index.rst").write_text("\n".join(lines) + "\n")


def write_package(folder: Path, package: str) -> None:
    """Write the pages of one package: by the file that a name comes from, or its public module."""
    folder.mkdir()
    pages: dict[str, list[Name]] = defaultdict(list)
    for name in public_names(package):
        pages[page_of(name, package)].append(name)
    titles = {page: title_of(page, package) for page in pages}
    index = heading(package)
    index += [summary(package), "", ".. toctree::", "   :hidden:", ""]
    order = sorted(pages, key=lambda page: (page != package, titles[page].lower()))
    index += [f"   {titles[page]} <{page}>" for page in order]
    for page in order:
        (folder / f"{page}.rst").write_text(page_text(page, titles[page], pages[page]))
        index += ["", f":doc:`{titles[page]} <{page}>`", ""]
        index += [f"* :py:obj:`~{name.full}`{brief(name)}" for name in pages[page]]
    (folder / "index.rst").write_text("\n".join(index) + "\n")


def page_of(name: Name, package: str) -> str:
    """Return the module whose page a name stands on."""
    if name.module != package:
        return name.module  # a public module is a page
    return getattr(name.value, "__module__", None) or package


def title_of(page: str, package: str) -> str:
    """Return what a page is about: its file's first line, or the module's name."""
    if page == package:
        return f"{package}, top level"
    if any(part.startswith("_") for part in page.split(".")):
        return summary(page).rstrip(".:").split(": ")[0].replace("`", "")
    return page


def summary(module: str) -> str:
    """Return the first line of a module's docstring."""
    return (inspect.getdoc(importlib.import_module(module)) or module).split("\n\n")[0]


def brief(name: Name) -> str:
    """Return the first sentence about a name, for a list."""
    if not callable(name.value) or name.foreign:
        return ""
    if name.same_as:
        return f" (the same as :py:obj:`{name.same_as}`)"
    text = (inspect.getdoc(name.value) or "").split("\n\n")[0].replace("\n", " ")
    return ": " + TRAILING.sub(r"``\1``", text) if text else ""


def page_text(page: str, title: str, names: list[Name]) -> str:
    """Return a page with everything about its names."""
    lines = heading(title)
    if title == page:
        # names below are given in full
        lines += [f".. py:module:: {page}", "", ".. py:currentmodule:: None", "", summary(page), ""]
    for name in names:
        lines += [*directive(name), ""]
    return "\n".join(lines)


def directive(name: Name) -> list[str]:
    """Return the lines that document one name."""
    if name.same_as:
        return [f".. py:attribute:: {name.full}", "", f"   The same as :py:obj:`{name.same_as}`."]
    if name.foreign:
        kind = getattr(name.value, "__module__", "builtins")
        return [f".. py:attribute:: {name.full}", "", f"   As in ``{kind}``."]
    if inspect.isclass(name.value):
        options = ["   :members:", "   :show-inheritance:"]
        return [f".. autoclass:: {name.full}", *options]
    if callable(name.value):
        return [f".. autofunction:: {name.full}"]
    return [f".. py:data:: {name.full}", f"   :type: {type(name.value).__name__}"]


def heading(text: str) -> list[str]:
    """Return a title in reStructuredText."""
    text = re.sub(r"([*_|])", r"\\\1", text)
    return [text, "=" * len(text), ""]
