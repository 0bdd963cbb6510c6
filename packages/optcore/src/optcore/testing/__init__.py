# SPDX-License-Identifier: Apache-2.0
"""Conformance checks for gradient transformations, and the table of those optcore ships.

Check a transformation of your own by describing it as a :class:`Case`; every ``float`` among its
options is also tried as tensor, schedule and tree, and differentiated:

>>> import optcore
>>> from optcore import testing
>>> def clipped_momentum(lr, decay, bound):
...     return optcore.chain(optcore.trace(decay), optcore.clip(bound), optcore.sgd(lr=lr))
>>> mine = testing.Case("mine", clipped_momentum, {"lr": 0.1, "decay": 0.9, "bound": 0.7})
>>> testing.check_transformation(mine)

A check that fails says who, what and where; this one forgets that gradients are the user's:

>>> def greedy(factor):
...     return optcore.stateless_with_tree_map(lambda g, p: g.mul_(factor))
>>> testing.check_purity(testing.Case("greedy", greedy, {"factor": 0.5}))
... # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
optcore.testing.ConformanceError: greedy: check_purity: expected gradients untouched ... at ['b']

In pytest, parametrize over :func:`checks_for`. ``CASES`` holds every optimizer and transformation
of optcore; :mod:`optcore.testing.reference` plain formulas of the optimizers. Importing this module
needs nothing but what optcore needs.

Layout: `_case` (what a row is), `_case_rows`, `_optimizer_cases`, `_moment_cases`, `_mixed_cases`,
`_transform_cases`, `_tool_cases`, `_combinator_cases`, `_informed_cases`, `_function_cases` (the
table), `_trajectory` (what checks run), `_conduct`, `_leaves`, `_derivatives` (the checks),
`catalogue` (the README's table).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from optcore.testing import reference as reference
from optcore.testing._case import Case as Case
from optcore.testing._case import ConformanceError as ConformanceError
from optcore.testing._combinator_cases import COMBINATORS
from optcore.testing._conduct import check_hyperparameters as check_hyperparameters
from optcore.testing._conduct import check_inplace_equals_pure as check_inplace_equals_pure
from optcore.testing._conduct import check_none_leaves as check_none_leaves
from optcore.testing._conduct import check_pickle as check_pickle
from optcore.testing._conduct import check_purity as check_purity
from optcore.testing._conduct import check_reference as check_reference
from optcore.testing._conduct import check_structure as check_structure
from optcore.testing._derivatives import check_func_grad as check_func_grad
from optcore.testing._derivatives import check_gradients as check_gradients
from optcore.testing._derivatives import check_jvp as check_jvp
from optcore.testing._derivatives import check_vmap as check_vmap
from optcore.testing._derivatives import check_zero_gradient as check_zero_gradient
from optcore.testing._function_cases import FUNCTIONS
from optcore.testing._informed_cases import INFORMED
from optcore.testing._leaves import check_dtypes as check_dtypes
from optcore.testing._leaves import check_edge_trees as check_edge_trees
from optcore.testing._mixed_cases import MIXED
from optcore.testing._optimizer_cases import OPTIMIZERS
from optcore.testing._tool_cases import TOOLS
from optcore.testing._transform_cases import TRANSFORMS

for _public in (Case, ConformanceError):
    _public.__module__ = __name__  # as errors and pickles name them


def _table(*rows: Case) -> Mapping[str, Case]:
    table = {case.name: case for case in rows}
    if len(table) != len(rows):
        raise ValueError("CASES: expected one case per name, got a name twice")
    return MappingProxyType(table)


CASES: Mapping[str, Case] = _table(
    *OPTIMIZERS, *MIXED, *TRANSFORMS, *TOOLS, *COMBINATORS, *INFORMED, *FUNCTIONS
)


def checks_for(case: Case) -> tuple[Callable[[Case], None], ...]:
    """The checks that a case owes, each a function of the case.

    Example:
        >>> import optcore
        >>> case = Case("identity", optcore.identity, differentiable=False, none_leaves=False)
        >>> [check.__name__ for check in checks_for(case)][:3]
        ['check_structure', 'check_purity', 'check_inplace_equals_pure']
    """
    owed = {
        check_structure: True,
        check_purity: True,
        check_inplace_equals_pure: True,
        check_pickle: True,
        check_hyperparameters: bool(case.values()),
        check_dtypes: True,
        check_edge_trees: True,
        check_vmap: True,
        check_gradients: case.differentiable,
        check_zero_gradient: case.differentiable,
        check_jvp: case.differentiable,
        check_func_grad: case.differentiable,
        check_reference: case.reference is not None,
        check_none_leaves: case.none_leaves,
    }
    return tuple(check for check, due in owed.items() if due)


def check_transformation(case: Case) -> None:
    """Run every check that the case owes.

    Raises:
        ConformanceError: The first promise that is not kept: who, which property, where. An error
            that the transformation itself raises is its cause.

    Example:
        >>> import optcore
        >>> check_transformation(Case("clip", optcore.clip, {"max_delta": 0.7}))
    """
    for check in checks_for(case):
        check(case)
