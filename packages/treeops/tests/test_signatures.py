# SPDX-License-Identifier: Apache-2.0
"""Every public name of OpTree is there, with the same parameters."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import optree
import pytest

import treeops

MODULES = ["", "accessors", "dataclasses", "functools", "pytree", "treespec", "typing"]


def public_names() -> Iterator[tuple[str, Any, Any]]:
    for module in MODULES:
        theirs = importlib.import_module(f"optree.{module}".rstrip("."))
        ours = importlib.import_module(f"treeops.{module}".rstrip("."))
        for name in theirs.__all__:
            path = f"{module}.{name}".lstrip(".")
            yield path, getattr(ours, name, None), getattr(theirs, name)


NAMES = list(public_names())


def parameters(function: Any) -> list[tuple[str, str, str]]:
    """Names, kinds and defaults; a default that marks a missing argument is only a mark."""

    def default(value: Any) -> str:
        if value is inspect.Parameter.empty:
            return "-"
        if isinstance(value, str | int | tuple | type(None)):
            return repr(value)
        if isinstance(value, type):
            return value.__name__
        return "object"

    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, default(p.default)) for p in found]


@pytest.mark.parametrize(("name", "ours", "theirs"), NAMES, ids=[name for name, _, _ in NAMES])
def test_name_is_there(name: str, ours: Any, theirs: Any) -> None:
    assert ours is not None
    assert isinstance(ours, type) is isinstance(theirs, type)
    assert callable(ours) is callable(theirs)


CALLABLES = [
    row
    for row in NAMES
    if callable(row[2])
    and getattr(row[2], "__module__", "").startswith("optree")
    and row[0].rpartition(".")[2] not in ("PyTreeSpec", "PyTreeDef", "PyTreeKind")
]


@pytest.mark.parametrize(
    ("name", "ours", "theirs"), CALLABLES, ids=[name for name, _, _ in CALLABLES]
)
def test_parameters_are_the_same(name: str, ours: Any, theirs: Any) -> None:
    assert parameters(ours) == parameters(theirs)


CLASSES = [row for row in NAMES if isinstance(row[2], type) and "optree" in row[2].__module__]


@pytest.mark.parametrize(("name", "ours", "theirs"), CLASSES, ids=[name for name, _, _ in CLASSES])
def test_classes_have_the_same_members(name: str, ours: Any, theirs: Any) -> None:
    missing = {member for member in dir(theirs) if not member.startswith("_")} - set(dir(ours))
    assert missing == set()


METHODS = [name for name in dir(optree.PyTreeSpec) if not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_treespecs(name: str) -> None:
    ours, theirs = getattr(treeops.PyTreeSpec, name), getattr(optree.PyTreeSpec, name)
    assert callable(ours) is callable(theirs)
    assert ours.__doc__


def test_every_function_says_what_it_does() -> None:
    undocumented = [name for name, ours, _ in CALLABLES if not inspect.getdoc(ours)]
    assert undocumented == []


def test_what_is_imported_late_is_listed() -> None:
    late = {"Partial", "dataclasses", "functools", "integrations", "pytree", "register_dataclass"}
    assert late <= set(dir(treeops))
    assert late <= {name for name in dir(treeops) if getattr(treeops, name) is not None}
    assert {"attrs", "jax", "numpy", "torch"} <= set(dir(treeops.integrations))
    for module in (treeops, treeops.integrations):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018
