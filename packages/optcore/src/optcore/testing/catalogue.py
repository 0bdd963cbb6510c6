# SPDX-License-Identifier: Apache-2.0
"""The README's table of optimizers, made of what the tests hold each of them to.

``python -m optcore.testing.catalogue README.md`` writes it between its marks; without a file it is
printed.
"""

from __future__ import annotations

import sys
from inspect import signature
from pathlib import Path

from optcore import INFORMED_OPTIMIZERS, OPTIMIZERS, OptimizerRow
from optcore.testing import CASES

BEGIN, END = "<!-- optimizers: begin -->", "<!-- optimizers: end -->"
_HEAD = "| function | class | torch | optax | differentiable | vmap | compile | kernel |"
_TICK, _NONE = "\N{CHECK MARK}", "\N{EN DASH}"
_RULE = "|---|---|---|---|---|---|---|---|"
# their rows stand inside a transformation that tells them the loss, which optax's is not
_WITH_OPTAX = ("polyak_sgd", "sophia")


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
    rows = [*OPTIMIZERS.values(), *INFORMED_OPTIMIZERS.values()]
    return "\n".join([_HEAD, _RULE, *map(_line, rows)])


def written(text: str) -> str:
    """A text with the table between its marks.

    Raises:
        ValueError: The marks are missing.
    """
    if BEGIN not in text or END not in text:
        raise ValueError(f"catalogue: expected a text with {BEGIN} and {END}, got one without")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END, 1)[1]}"


def _line(row: OptimizerRow) -> str:
    cases = [case for case in CASES.values() if row.name in case.covers]
    ticks = (
        any(case.torch is not None for case in cases),
        row.name in _WITH_OPTAX or any(case.optax is not None for case in cases),
        any(case.differentiable for case in cases),
        bool(cases),  # which all owe check_vmap
        True,  # the tests compile every row of both tables
        "use_accelerated_op" in signature(row.factory).parameters,
    )
    names = ", ".join(f"`{name}`" for name in (row.class_name, *row.also))
    return f"| `{row.name}` | {names} | {' | '.join(_TICK if t else _NONE for t in ticks)} |"


def main(paths: list[str]) -> None:
    """Write the table into files, or print it."""
    for path in map(Path, paths):
        path.write_text(written(path.read_text(encoding="utf-8")), encoding="utf-8")
    if not paths:
        print(table())


if __name__ == "__main__":
    main(sys.argv[1:])
