# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import optcore

MODULES = [f"optcore.{module.name}" for module in pkgutil.iter_modules(optcore.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    torch.set_default_dtype(torch.float32)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_function_has_an_example():
    missing = [
        name
        for name, value in vars(optcore).items()
        if callable(value)
        and not name.startswith("_")
        and not isinstance(value, type)
        and ">>>" not in (value.__doc__ or "")
    ]
    assert missing == []
