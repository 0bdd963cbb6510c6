# SPDX-License-Identifier: Apache-2.0
"""How the optimizers' rows are written: variants of one factory, and their counterparts."""

from __future__ import annotations

from typing import Any

from optcore import _optimizers as _table
from optcore.testing._case import Case

_factories = {name: row.factory for name, row in _table.OPTIMIZERS.items()}


def rows(name: str, shared: dict[str, Any], **cases: dict[str, Any]) -> list[Case]:
    """One case per keyword: its options, and under ``"case"`` what differs from ``shared``."""
    rows = []
    for variant, options in cases.items():
        own = {**shared, **options.pop("case", {})}
        title = name if variant == "plain" else f"{name}-{variant.replace('_', '-')}"
        rows.append(Case(title, _factories[name], options, **own))
    return rows


NO_OPTAX = {"optax": None}
NO_TORCH = {"torch": None}


def with_decay(name: str, **fixed: Any) -> Any:
    """The optimizer of optax, behind its own weight decay where the decay is an L2 penalty."""

    def make(
        optax: Any, lr: float, *, betas: Any = (), weight_decay: float = 0.0, **rest: Any
    ) -> Any:
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            getattr(optax, name)(lr, *betas, **{**rest, **fixed}),
        )

    return make


def inside_decay(name: str) -> Any:
    """The optimizer of optax, which has weight decay itself."""

    def make(optax: Any, lr: float, *, betas: Any = (), **rest: Any) -> Any:
        module = optax if hasattr(optax, name) else optax.contrib
        return getattr(module, name)(lr, *betas, **rest)

    return make
