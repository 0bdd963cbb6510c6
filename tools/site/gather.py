# SPDX-License-Identifier: Apache-2.0
"""Gather the pages: READMEs, changelogs, notebooks and examples from where they are kept."""

from __future__ import annotations

import ast
import posixpath
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LINK = re.compile(r"(\]\()([^)#\s]+)(#[^)]*)?(\))")
IMAGE = re.compile(r'(<img src=")([^":]+)(")')
SECTION = re.compile(r"^<!-- section: (\S+) # (.+) -->$", re.MULTILINE)
LIST = re.compile(r"^<!-- list: (\w+) -->$", re.MULTILINE)
PROGRAM = re.compile(r"^    .*examples/(\w+)\.py", re.MULTILINE)  # a command in a README
MODES = {"Explicit": "maml", "Implicit": "implicit", "Zero-order": "zero_order"}  # and pictures


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
        elif source.endswith(".py"):
            path.write_text(example(ROOT / source, target, pages, stage), encoding="utf-8")
        else:
            path.write_text(page(source, target, pages, stage), encoding="utf-8")


def page(source: str, target: str, pages: dict[str, str], stage: Path) -> str:
    """Return a Markdown page of the site with what it asks for filled in."""
    text = (ROOT / source).read_text(encoding="utf-8")
    text = SECTION.sub(lambda found: section(found[1], found[2], target, pages, stage), text)
    text = LIST.sub(lambda found: LISTS[found[1]](stage), text)
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
    for program in programs():
        table[str(program.relative_to(ROOT))] = f"examples/{program.stem}.md"
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
    return included(under(source, title, target), source, target, pages, stage)


def under(source: str, title: str, target: str) -> str:
    """Return the text under a heading of a file as it is."""
    text = (ROOT / source).read_text(encoding="utf-8")
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,2}} |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise PageError(f"{target}: expected a section '{title}' in {source}, found none")
    return found[2]


def included(text: str, source: str, target: str, pages: dict[str, str], stage: Path) -> str:
    """Return text of one file for the page of another: headings in bold, links kept."""
    text = re.sub(r"^#+ (.*)$", r"**\1**", text, flags=re.MULTILINE)
    return linked(text.strip("\n"), source, target, pages, stage)


def programs() -> list[Path]:
    """Return the examples with a command line, package by package."""
    paths = sorted(ROOT.glob("packages/*/examples/*.py"))
    return [path for path in paths if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]


@dataclass(frozen=True)
class About:
    """What a program says of itself: in a sentence, how to run it, and the rest."""

    title: str
    command: str
    rest: str


def about(path: Path) -> About:
    """Return what the docstring of a program says."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, command, *rest = [*text.split("\n\n"), "", ""]
    lines = [line.strip() for line in command.splitlines()]
    if not any(path.name in line for line in lines):
        raise PageError(f"{path.name}: expected its command in its second paragraph, found none")
    return About(" ".join(first.split()), "\n".join(lines), "\n\n".join(rest).strip())


def example(path: Path, target: str, pages: dict[str, str], stage: Path) -> str:
    """Return the page of a program: how to run it, a picture, what it printed, what it does."""
    said = about(path)
    prompt = [f"$ {line}" for line in said.command.splitlines()]
    lines = [f"# {path.stem}", "", said.title, "", "```console", *prompt, "```", ""]
    drawn = pictures_of(path, stage)
    for picture in drawn:
        image = f'<img src="../_static/{picture}" alt="plot of {path.stem}">'
        lines += [f'<p><a href="../_static/{picture}">{image}</a></p>', ""]
    if drawn:
        lines += [
            "*Drawn by a run of seconds, with `--smoke`; the figures below are of a whole run.*",
            "",
        ]
    lines += ["## What it printed", ""]
    for source, text in told(path):
        lines += [included(text, source, target, pages, stage), ""]
    lines += ["## What it does", "", "```{eval-rst}", said.rest, "```", ""]
    copy = stage / "files" / path.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, copy)
    lines += [f"Source: {{download}}`{path.relative_to(ROOT)} <../files/{path.relative_to(ROOT)}>`"]
    return "\n".join(lines) + "\n"


def pictures_of(path: Path, stage: Path) -> list[str]:
    """Return the names of the plots that the build has of a program."""
    return sorted(file.name for file in (stage / "pictures").glob(f"example_{path.stem}_[0-9].png"))


def told(path: Path) -> list[tuple[str, str]]:
    """Return what READMEs tell of a program, each part with its file, without the bare command."""
    found = []
    known = about(path).command.splitlines()
    for readme in (path.parents[1] / "README.md", ROOT / "README.md"):
        for part in parts(readme.read_text(encoding="utf-8")):
            if path.stem in PROGRAM.findall(part) or f"out/{path.stem}/" in part:
                found.append(
                    (str(readme.relative_to(ROOT)), without_command(part, path.name, known))
                )
    if not found:
        raise PageError(f"{path.name}: expected its command in a README, found none")
    return found


def without_command(part: str, program: str, known: list[str]) -> str:
    """Return a part of a README without its heading and the lines of commands already known."""

    def kept(found: re.Match[str]) -> str:
        if not {line.strip() for line in found[1].splitlines()} <= {*known}:
            return found[0]
        # where the command begins a sentence, the name of the program does
        return f"`{program}` " if found[2] else ""

    text = re.sub(r"\A#.*\n+", "", part)
    return re.sub(r"(?:\A|(?<=\n\n))((?:    [^\n]*\n)+)\n(?=([a-z]?))", kept, text)


def parts(text: str) -> list[str]:
    """Split a README at headings, at paragraphs that begin in bold and at other programs."""
    found: list[list[str]] = [[]]
    for block in re.split(r"\n\n+", text):
        known = PROGRAM.findall("\n\n".join(found[-1]))
        other = [name for name in PROGRAM.findall(block) if known and name not in known]
        if block.startswith(("#", "**")) or other:
            found.append([])
        found[-1].append(block)
    return ["\n\n".join(blocks) + "\n\n" for blocks in found]


def examples(stage: Path) -> str:
    """Return a card for every program in the examples, by package."""
    lines = []
    for package in sorted({path.parent for path in programs()}):
        lines += [f"## {package.parent.name}", "", "::::{grid} 1 2 2 3", ":gutter: 3", ""]
        for path in programs():
            if path.parent == package:
                lines += [f":::{{grid-item-card}} {path.stem}", f":link: examples/{path.stem}"]
                drawn = [f":img-top: pictures/{name}" for name in pictures_of(path, stage)[-1:]]
                lines += [":link-type: doc", *drawn, about(path).title, ":::", ""]
        lines += ["::::", ""]
    return "\n".join(lines)


def tutorials(stage: Path) -> str:
    """Return the list of notebooks, each with its title."""
    lines = []
    for path in sorted(ROOT.glob("packages/*/tutorials/*.ipynb")):
        title = re.search(r'"# ([^"\\]+)', path.read_text(encoding="utf-8"))
        lines.append(f"* [{title[1]}]({path.name}) ({path.parent.parent.name})")
    return "\n".join(lines)


def modes(stage: Path) -> str:
    """Return the example of each mode in the first README, with the graph that optviz draws."""
    blocks = under("README.md", "Three ways to dL/dφ", "index.md").strip().split("\n\n")
    starts = [
        at
        for at, block in enumerate(blocks)
        if block.startswith(tuple(f"**{name}" for name in MODES))
    ]
    if len(starts) != len(MODES):
        raise PageError(f"index.md: expected an example of each mode, found {len(starts)}")
    lines = ["\n\n".join(blocks[1 : starts[0]]), "", "::::{tab-set}"]
    for (name, picture), start in zip(MODES.items(), starts):
        lines += [
            f":::{{tab-item}} {name}",
            sentence(blocks[start].partition(": ")[2]),
            "",
            blocks[start + 1],
            "",
        ]
        if (stage / "pictures" / f"drawn_{picture}.svg").exists():
            address = f"_static/drawn_{picture}.svg"
            image = f'<img src="{address}" alt="graph of the meta-gradient">'
            lines += [f'<div class="drawn" tabindex="0"><a href="{address}">{image}</a></div>', ""]
        lines += [":::", ""]
    return "\n".join([*lines, "::::"])


def sentence(text: str) -> str:
    """Return text that begins with a capital letter."""
    return text[:1].upper() + text[1:]


LISTS = {"examples": examples, "modes": modes, "tutorials": tutorials}
