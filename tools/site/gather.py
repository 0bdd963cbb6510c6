# SPDX-License-Identifier: Apache-2.0
"""Gather the pages: READMEs, changelogs, notebooks and examples from where they are kept."""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
IMAGE = re.compile(r'(<img src=")([^":]+)(")')
SECTION = re.compile(r"^<!-- section: (\S+) # (.+) -->$", re.MULTILINE)
LIST = re.compile(r"^<!-- list: (\w+) -->$", re.MULTILINE)


class PageError(Exception):
    """A page that cannot be made, and why."""


def gather(stage: Path) -> None:
    """Write the whole source of the site into an empty folder, but for the reference."""
    pages = page_table()
    for source, target in pages.items():
        path = stage / target
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".ipynb"):
            shutil.copy(ROOT / source, path)
        else:
            path.write_text(page(source, target, pages, stage), encoding="utf-8")


def page(source: str, target: str, pages: dict[str, str], stage: Path) -> str:
    """Return a Markdown page of the site with what it asks for filled in."""
    text = (ROOT / source).read_text(encoding="utf-8")
    text = SECTION.sub(lambda found: section(found[1], found[2], target, pages, stage), text)
    text = LIST.sub(lambda found: LISTS[found[1]](), text)
    return linked(text, source, target, pages, stage)


def page_table() -> dict[str, str]:
    """Map files of the repository to pages of the site."""
    own = {path: path.relative_to(HERE / "pages") for path in (HERE / "pages").rglob("*.md")}
    table = {str(path.relative_to(ROOT)): str(name) for path, name in own.items()}
    table["tools/site/features.md"] = "features.md"
    table["CONTRIBUTING.md"] = "contributing.md"
    table["README.md"] = "overview.md"
    table["packages/treeops/MIGRATING.md"] = "migrating/optree.md"
    for package in sorted(ROOT.glob("packages/*/README.md")):
        name = package.parent.name
        table[f"packages/{name}/README.md"] = f"packages/{name}.md"
        table[f"packages/{name}/CHANGELOG.md"] = f"changelogs/{name}.md"
    for notebook in sorted(ROOT.glob("packages/*/tutorials/*.ipynb")):
        table[str(notebook.relative_to(ROOT))] = f"tutorials/{notebook.name}"
    return table


def linked(text: str, source: str, target: str, pages: dict[str, str], stage: Path) -> str:
    """Turn links between files of the repository into links between pages."""
    if source.startswith("tools/site/pages/"):
        return text  # written for the site
    here, there = posixpath.dirname(source), posixpath.dirname(target)

    def link(found: re.Match[str]) -> str:
        address = found[2]
        if re.match(r"[a-z]+:", address):
            return found[0]
        path = posixpath.normpath(posixpath.join(here, address))
        known = pages.get(path) or pages.get(f"{path}/README.md")
        if known:
            return f"{found[1]}{posixpath.relpath(known, there or '.')}{found[3] or ''}{found[4]}"
        if not (ROOT / path).is_file():
            raise PageError(f"{source}: expected a link to a file of the repository, got {address}")
        copy = stage / "files" / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
        return f"{found[1]}{posixpath.relpath('files/' + path, there or '.')}{found[4]}"

    def image(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, found[2]))
        copy = stage / "pictures" / posixpath.basename(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, copy)
        address = posixpath.relpath(f"_static/{copy.name}", there or ".")
        return f"{found[1]}{address}{found[3]}"

    return IMAGE.sub(image, LINK.sub(link, text))


def section(source: str, title: str, target: str, pages: dict[str, str], stage: Path) -> str:
    """Return what stands under a heading of a file, without the heading."""
    text = (ROOT / source).read_text(encoding="utf-8")
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise PageError(f"{target}: expected a section '{title}' in {source}, found none")
    body = re.sub(r"^#+ (.*)$", r"**\1**", found[2], flags=re.MULTILINE)
    return linked(body.strip(), source, target, pages, stage)


def examples() -> str:
    """Return a section for every program in the examples, from its own description."""
    lines = []
    for package in sorted(ROOT.glob("packages/*/examples")):
        lines += [f"## {package.parent.name}", ""]
        for path in sorted(package.glob("*.py")):
            text = path.read_text(encoding="utf-8")
            if '__name__ == "__main__"' in text:
                lines += [*example(path, text), ""]
    return "\n".join(lines)


def example(path: Path, text: str) -> list[str]:
    """Return the lines about one program: what it shows, how to run it, what it says of itself."""
    first, _, rest = (ast.get_docstring(ast.parse(text)) or path.stem).partition("\n\n")
    place = path.relative_to(ROOT)
    distributed = "optdist.launch" in text or "auto_init_rpc" in text
    command = f"python -m optdist.launch --nproc 2 {place}" if distributed else f"python {place}"
    title = " ".join(first.split()).rstrip(".")
    lines = [f"### {path.stem}", "", f"{title}.", "", "```console", f"$ {command}", "```"]
    if rest:
        lines += ["", ":::{dropdown} More", "```text", rest, "```", ":::"]
    return lines


def tutorials() -> str:
    """Return the list of notebooks, each with its title."""
    lines = []
    for path in sorted(ROOT.glob("packages/*/tutorials/*.ipynb")):
        title = re.search(r'"# ([^"\\]+)', path.read_text(encoding="utf-8"))
        lines.append(f"* [{title[1]}]({path.name}) ({path.parent.parent.name})")
    return "\n".join(lines)


LISTS = {"examples": examples, "tutorials": tutorials}
