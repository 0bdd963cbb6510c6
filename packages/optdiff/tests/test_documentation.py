# SPDX-License-Identifier: Apache-2.0
"""Every public function shows an example; pytest runs them with the other tests."""

import inspect
import types

import pytest

import optdiff

MODULES = [
    optdiff,
    optdiff.fixed_point,
    optdiff.linalg,
    optdiff.linear_solve,
    optdiff.minimize,
    optdiff.root,
    optdiff.testing,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_has_an_example(module):
    missing = [
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and (module is optdiff or value.__module__ == module.__name__)
        and not name.startswith("_")
        and ">>>" not in (value.__doc__ or "")
    ]
    assert missing == []


META = [name for name in dir(optdiff) if name.startswith("Meta") and name != "MetaOptimizer"]


@pytest.mark.parametrize("name", META)
def test_every_meta_class_documents_its_keywords(name):
    cls = getattr(optdiff, name)
    signature = inspect.signature(cls)
    doc = inspect.getdoc(cls)
    missing = [keyword for keyword in signature.parameters if f"\n    {keyword}: " not in doc]
    assert missing == []
    for section in ("Args", "Raises", "Example", "Reference"):
        assert f"\n{section}:\n    " in doc


def test_a_star_import_brings_all_but_modules():
    public = {name: value for name, value in vars(optdiff).items() if not name.startswith("_")}
    names = [n for n, value in public.items() if not isinstance(value, types.ModuleType)]
    assert sorted(optdiff.__all__) == sorted(names)
