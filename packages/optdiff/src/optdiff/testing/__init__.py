# SPDX-License-Identifier: Apache-2.0
"""Bilevel problems whose solutions and hypergradients are known, to hold any of the modes against.

Each has an inner problem ``optimality(x, *args) = 0`` and an outer objective ``outer(x)``.
``TRANSFORMS`` are ways to differentiate a function, which all have to work on any of them.

Layout: `_problem` (what a problem is), `_quadratic`, `_regression`, `_roots` (the problems),
`_transforms` (how to compare with them).
"""

from optdiff.testing._problem import BilevelProblem as BilevelProblem
from optdiff.testing._quadratic import quadratic_bilevel as quadratic_bilevel
from optdiff.testing._regression import logistic_regression as logistic_regression
from optdiff.testing._regression import ridge_regression as ridge_regression
from optdiff.testing._roots import coupled_pair as coupled_pair
from optdiff.testing._roots import square_root as square_root
from optdiff.testing._transforms import TRANSFORMS as TRANSFORMS
from optdiff.testing._transforms import assert_equal_under as assert_equal_under

PROBLEMS = {
    "quadratic": quadratic_bilevel,
    "ridge": ridge_regression,
    "logistic": logistic_regression,
    "square_root": square_root,
    "coupled": coupled_pair,
}

for _public in (BilevelProblem, assert_equal_under, *PROBLEMS.values()):
    _public.__module__ = __name__  # as errors and pickles name them
