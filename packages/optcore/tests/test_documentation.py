# SPDX-License-Identifier: Apache-2.0
"""Every public function shows an example; pytest runs them with the other tests."""

import re
from pathlib import Path

import pytest

import optcore
from optcore.testing import catalogue


def test_every_public_function_has_an_example():
    missing = [
        name
        for name, value in ((name, getattr(optcore, name)) for name in dir(optcore))
        if callable(value)
        and not name.startswith("_")
        and not isinstance(value, type)
        and ">>>" not in (value.__doc__ or "")
    ]
    assert missing == []


def test_the_table_of_the_readme_is_current():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    advice = "run python -m optcore.testing.catalogue packages/optcore/README.md"
    assert catalogue.written(text) == text, advice


TESTS = [test for tests in catalogue.TESTS.values() for test in tests.values()]


@pytest.mark.parametrize("test", TESTS)
def test_the_tests_behind_its_ticks_exist(test):
    file, name, parameter = re.fullmatch(r"(.*)::(\w+)(?:\[(.*)\])?", test).groups()
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    assert f"\ndef {name}(" in text
    assert parameter is None or f'"{parameter}"' in text


def test_a_text_without_marks_is_refused():
    with pytest.raises(ValueError, match=r"^catalogue: expected a text with <!-- optim"):
        catalogue.written("nothing")


def test_a_star_import_brings_what_is_imported_later_too():
    names = {}
    exec("from optcore import *", names)
    assert {"adam", "Adam", "OPTIMIZERS", "projection_simplex"} <= names.keys()
    assert "TYPE_CHECKING" not in names
