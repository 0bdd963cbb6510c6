# SPDX-License-Identifier: Apache-2.0
"""The table of optimizers: every class here and in the packages above is derived from a row."""

from __future__ import annotations

from optcore import _moments, _momentum
from optcore._rows import OptimizerRow

OPTIMIZERS: dict[str, OptimizerRow] = {row.name: row for row in (*_momentum.ROWS, *_moments.ROWS)}
