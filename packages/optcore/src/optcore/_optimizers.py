# SPDX-License-Identifier: Apache-2.0
"""The table of optimizers: every class here and in the packages above is derived from a row."""

from __future__ import annotations

from optcore import (
    _adabelief,
    _adadelta,
    _adafactor,
    _adagrad,
    _adam,
    _adamax,
    _adan,
    _ademamix,
    _adopt,
    _amsgrad,
    _asgd,
    _dadapt,
    _fromage,
    _layerwise,
    _madgrad,
    _momentum,
    _muon,
    _nadam,
    _noise,
    _novograd,
    _optimistic,
    _polyak,
    _radam,
    _rmsprop,
    _rprop,
    _schedule_free_rows,
    _shampoo,
    _sign,
    _sm3,
    _soap,
    _sophia,
    _yogi,
)
from optcore._rows import OptimizerRow

_FAMILIES = (
    _momentum,
    _adam,
    _adamax,
    _amsgrad,
    _nadam,
    _radam,
    _adabelief,
    _yogi,
    _adan,
    _novograd,
    _rmsprop,
    _adagrad,
    _adadelta,
    _rprop,
    _asgd,
    _adafactor,
    _muon,
    _layerwise,
    _sign,
    _sm3,
    _fromage,
    _schedule_free_rows,
    _noise,
    _optimistic,
    _ademamix,
    _adopt,
    _madgrad,
    _dadapt,
    _shampoo,
    _soap,
)

OPTIMIZERS: dict[str, OptimizerRow] = {row.name: row for family in _FAMILIES for row in family.ROWS}

# Those whose update asks for more than gradients, as an extra argument: ``value``, ``obj_fn``.
INFORMED_OPTIMIZERS: dict[str, OptimizerRow] = {
    row.name: row for row in (*_polyak.ROWS, *_sophia.ROWS)
}
