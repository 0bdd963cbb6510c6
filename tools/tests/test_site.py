# SPDX-License-Identifier: Apache-2.0
"""The site's source: pages gathered from the repository, links kept, public names found."""

from __future__ import annotations

import importlib
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest

SITE = Path(__file__).resolve().parents[1] / "site"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    """The modules of the tool."""
    monkeypatch.syspath_prepend(SITE.parent)
    monkeypatch.syspath_prepend(SITE)
    modules = {name: importlib.import_module(name) for name in ("gather", "names", "tex", "build")}
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    return modules


def test_every_page_is_gathered_and_every_link_and_section_is_found(
    site: dict[str, ModuleType], tmp_path: Path
) -> None:
    site["gather"].gather(tmp_path)
    assert {path.parent.name for path in tmp_path.rglob("*.md")} >= {"packages", "changelogs"}
    assert len(list(tmp_path.glob("tutorials/*.ipynb"))) >= 8
    assert "| JAXopt, jax.jit |" in (tmp_path / "modes.md").read_text(encoding="utf-8")
    assert "few_shot" in (tmp_path / "examples.md").read_text(encoding="utf-8")
    assert "pytrees.ipynb" in (tmp_path / "tutorials" / "index.md").read_text(encoding="utf-8")


def test_what_ran_is_kept_until_a_source_changes_wherever_the_clone_lies(
    site: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = tmp_path / "build"  # a name that is no source inside a package
    source = clone / "packages" / "one" / "src" / "one.py"
    source.parent.mkdir(parents=True)
    source.write_text("a = 1\n")
    monkeypatch.setattr(site["build"], "ROOT", clone)
    monkeypatch.setattr(site["build"], "KEPT", clone / "kept")
    first = site["build"].cache()
    (clone / "kept" / "note").write_text("someone's file stays")
    assert site["build"].cache() == first
    source.write_text("a = 2\n")
    assert site["build"].cache() != first
    assert not first.exists()
    assert (clone / "kept" / "note").exists()


def test_links_between_files_become_links_between_pages(
    site: dict[str, ModuleType], tmp_path: Path
) -> None:
    text = "[a](../optcore) [b](../../CONTRIBUTING.md#x) [c](https://example.org) [d](LICENSE)"
    pages = site["gather"].page_table()
    found = site["gather"].linked(
        text, "packages/optdiff/README.md", "packages/optdiff.md", pages, tmp_path
    )
    assert found == (
        "[a](optcore.md) [b](../contributing.md#x) [c](https://example.org) "
        "[d](../files/packages/optdiff/LICENSE)"
    )


def test_a_link_to_nothing_is_refused(site: dict[str, ModuleType], tmp_path: Path) -> None:
    gather = site["gather"]
    with pytest.raises(
        gather.PageError,
        match=r"README.md: expected a link to a file of the repository, got nowhere.md",
    ):
        gather.linked("[a](nowhere.md)", "README.md", "overview.md", {}, tmp_path)


def test_a_section_that_is_gone_is_refused(site: dict[str, ModuleType], tmp_path: Path) -> None:
    gather = site["gather"]
    with pytest.raises(
        gather.PageError, match=r"modes.md: expected a section 'Gone' in README.md, found none"
    ):
        gather.section("README.md", "Gone", "modes.md", {}, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "treeops.tree_map",
        "treeops.Partial",
        "treeops.register_dataclass",
        "treeops.accessors.PyTreeAccessor",
        "treeops.pytree.map",
        "treeops.integrations.torch.parameter_containers",
        "optcore.adam",
        "optcore.Adam",
        "optcore_accel.status",
        "optdiff.MetaAdam",
        "optdiff.linear_solve.solve_cg",
        "optdiff.fixed_point.anderson",
        "optdist.parallelize",
        "optdist.autograd.context",
        "optviz.draw",
    ],
)
def test_public_names(site: dict[str, ModuleType], name: str) -> None:
    names = site["names"].public_names(name.split(".")[0])
    assert name in {entry.full for entry in names}


@pytest.mark.parametrize("package", ["optcore", "optdiff"])
def test_public_names_are_those_of_a_star_import(site: dict[str, ModuleType], package: str) -> None:
    names = {entry.full for entry in site["names"].public_names(package)}
    listed = importlib.import_module(package).__all__
    assert {f"{package}.{name}" for name in listed} <= names
    assert f"{package}.Any" not in names
    assert f"{package}.torch" not in names


def test_an_inventory_is_read(site: dict[str, ModuleType], tmp_path: Path) -> None:
    lines = b"optcore.adam py:function 1 reference/optcore/_adam.html#$ -\n"
    header = b"# Sphinx inventory version 2\n# Project: x\n# Version: 1\n# zlib\n"
    (tmp_path / "objects.inv").write_bytes(header + zlib.compress(lines))
    assert site["build"].inventory(tmp_path / "objects.inv") == {"optcore.adam"}


def test_the_parts_of_a_readme_about_a_program(site: dict[str, ModuleType]) -> None:
    text = (
        "## A\n\n    python packages/p/examples/a.py\n\nOf a.\n\n| 1 |\n\n"
        "    pip install x\n    python packages/p/examples/b.py  # short\n\nOf b.\n\n"
        "**Else.**\n\nNo.\n"
    )
    of_a, of_b = (part for part in site["gather"].parts(text) if "examples/" in part)
    assert of_a.endswith("Of a.\n\n| 1 |\n\n")
    assert of_b.startswith("    pip install x\n")
    assert of_b.endswith("Of b.\n\n")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("## A\n\n    python x/a.py\n\nOf it.\n", "Of it.\n"),
        ("## A\n\n    python x/a.py\n\nlearns.\n", "`a.py` learns.\n"),
        ("**A.**\n\n    python x/a.py\n\nlearns.\n", "**A.**\n\n`a.py` learns.\n"),
        (
            "    python x/a.py  # so\n    python x/a.py --b\n\nOf it.\n",
            "    python x/a.py  # so\n    python x/a.py --b\n\nOf it.\n",
        ),
        (
            "    pip install x\n    python x/a.py\n\nOf it.\n",
            "Of it.\n",
        ),
    ],
)
def test_a_bare_command_is_told_once(site: dict[str, ModuleType], part: str, expected: str) -> None:
    known = ["pip install x", "python x/a.py"]
    assert site["gather"].without_command(part, "a.py", known) == expected


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        (r"\tfrac12\|w\|^2", r"\tfrac{1}{2}\|w\|^2"),
        (r"\frac 3 2x^23", r"\frac{3}{2}x^{2}3"),
        (r"\frac1n\sum_i x^2", r"\frac1n\sum_i x^2"),
        (r"\operatorname*{arg\,min}_y", r"\arg\min_y"),
        (r"a \dots \big( b", r"a \ldots \bigl( b"),
    ],
)
def test_formulas_are_read_as_tex_reads_them(
    site: dict[str, ModuleType], formula: str, expected: str
) -> None:
    assert site["tex"].readable(formula) == expected


def test_primes_and_bars_have_no_space(site: dict[str, ModuleType]) -> None:
    found = site["tex"].spaced("<mi>x</mi><mo>'</mo><mo>‖</mo><mo>+</mo>")
    assert found.count('lspace="0"') == 2
    assert "\N{PRIME}" in found


def test_every_program_tells_how_to_run_it_and_is_told_of(site: dict[str, ModuleType]) -> None:
    gather = site["gather"]
    assert len(gather.programs()) >= 16
    for path in gather.programs():
        assert f"examples/{path.name}" in gather.about(path).command
        assert gather.told(path)


def test_a_program_that_does_not_tell_how_to_run_it_is_refused(
    site: dict[str, ModuleType], tmp_path: Path
) -> None:
    gather = site["gather"]
    (tmp_path / "lost.py").write_text('"""What.\n\nMore.\n"""\n')
    with pytest.raises(
        gather.PageError,
        match=r"lost.py: expected its command in its second paragraph, found none",
    ):
        gather.about(tmp_path / "lost.py")


def test_broken_links_are_refused(
    site: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = site["build"]
    monkeypatch.setattr(build, "SITE", tmp_path)
    page = tmp_path / "a.html"
    page.write_text('<p id="x"></p><a href="#x"></a><a class="code-link b" href="a.html#x"></a>')
    assert build.check_links() == (2, 1)
    page.write_text('<a href="#y"></a><a href="b.html"></a><a href="https://example.org"></a>')
    with pytest.raises(build.ToolError, match=r"got a.html: #y; a.html: b.html$"):
        build.check_links()


@pytest.mark.parametrize(
    ("text", "before", "own", "expected"),
    [
        ("optcore.adam", None, "", "optcore.adam"),
        ("adam", None, "optcore", "optcore.adam"),
        ("adam", "optcore", "", "optcore.adam"),
        ("adam", "torchopt", "optcore", None),
        ("linear_solve.solve_cg", None, "optdiff", "optdiff.linear_solve.solve_cg"),
        ("zero_order", "optdiff.linear_solve", "optdiff", "optdiff.zero_order"),
        ("optcore.gone", None, "optcore", None),
        ("optcore", None, "", None),
        ("mask", None, "", None),
        ("apply_updates", None, "optdiff", "optcore.apply_updates"),
        ("apply_updates", None, "", None),
        ("apply_updates", "optax", "optdiff", None),
        ("tree_map", None, "optdiff", None),  # of two packages
        ("adam", None, "optdiff", None),
    ],
)
def test_what_a_short_name_means(
    site: dict[str, ModuleType], text: str, before: str | None, own: str, expected: str | None
) -> None:
    known = {
        "optcore",
        "optcore.adam",
        "optcore.apply_updates",
        "optcore.tree_map",
        "treeops.tree_map",
        "optdiff.linear_solve.solve_cg",
        "optdiff.zero_order",
    }
    assert site["names"].meant(text, before, own, known) == expected
