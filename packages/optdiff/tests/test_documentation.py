# SPDX-License-Identifier: Apache-2.0
"""Every public function shows an example; pytest runs them with the other tests."""

import inspect

import pytest

import optdiff
import optdiff.testing

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
