# SPDX-License-Identifier: Apache-2.0
"""The README's table of optimizers, made of what the tests hold each of them to.

``python -m optcore.testing.catalogue README.md`` writes it between its marks; without a file it is
printed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from optcore import INFORMED_OPTIMIZERS, OPTIMIZERS, reduce_on_plateau, sam
from optcore.testing import CASES, check_gradients, check_vmap, checks_for

_ROWS = {**OPTIMIZERS, **INFORMED_OPTIMIZERS}
BEGIN, END = "<!-- optimizers: begin -->", "<!-- optimizers: end -->"
_HEAD = "| function | class | torch | optax | differentiable | vmap | compile | kernel |"
_TICK, _NONE = "\N{CHECK MARK}", "\N{EN DASH}"
_RULE = "|---|---|---|---|---|---|---|---|"
# Tests that hold an optimizer to what no check of its rows does: they are told of the loss, which
# optax's and the compiler are not told in the same words.
TESTS = {
    "polyak_sgd": {"optax": "test_informed.py::test_polyak_sgd_takes_the_steps_of_optax"},
    "sophia": {"optax": "test_second_order.py::test_takes_the_steps_of_optax[sophia]"},
    "sam": {
        "optax": "test_second_order.py::test_takes_the_steps_of_optax[sam]",
        "compile": "test_compile.py::test_transformations[sam]",
    },
    "reduce_on_plateau": {
        "optax": "test_second_order.py::test_takes_the_steps_of_optax[plateau]",
        "compile": "test_compile.py::test_every_optimizer_that_is_told_of_the_loss"
        "[reduce_on_plateau]",
    },
}
# around or behind any optimizer
_AROUND = {sam: ("SAM",), reduce_on_plateau: ("ReduceOnPlateau",)}


def table() -> str:
    """The table, a line for each optimizer.

    A tick means that a test holds the optimizer to it: equal to torch.optim to 1e-12 and to optax
    to 1e-9 after 50 steps or more in float64; first and second derivatives equal to finite
    differences; vmap equal to a loop; one graph under ``torch.compile(fullgraph=True)``; a kernel
    in optcore-accel.

    Example:
        >>> table().splitlines()[2]
        '| `sgd` | `SGD` | ✓ | ✓ | ✓ | ✓ | ✓ | ✓ |'
    """
    lines = [_line(row.factory, (row.class_name, *row.also)) for row in _ROWS.values()]
    lines += [_line(factory, names) for factory, names in _AROUND.items()]
    return "\n".join([_HEAD, _RULE, *lines])


def written(text: str) -> str:
    """A text with the table between its marks.

    Raises:
        ValueError: The marks are missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"catalogue: expected a text with {BEGIN} and {END}, got one without")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"


def _line(factory: Callable[..., Any], names: tuple[str, ...]) -> str:
    own = factory.__name__
    cases = [case for case in CASES.values() if own in case.covers]
    owed = {check for case in cases for check in checks_for(case)}
    elsewhere = TESTS.get(own, {})
    ticks = (
        any(case.torch is not None for case in cases),
        "optax" in elsewhere or any(case.optax is not None for case in cases),
        check_gradients in owed,
        check_vmap in owed,
        "compile" in elsewhere or own in _ROWS,  # test_compile.py runs over both tables
        "use_accelerated_op" in signature(factory).parameters,
    )
    classes = ", ".join(f"`{name}`" for name in names) or _NONE
    return f"| `{own}` | {classes} | {' | '.join(_TICK if t else _NONE for t in ticks)} |"


def main(paths: list[str]) -> None:
    """Write the table into files, or print it."""
    for path in map(Path, paths):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not paths:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
