# SPDX-License-Identifier: Apache-2.0
"""The rows of transformations that hold others, most of them around Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optcore
from optcore.testing._case import Case


def _is_matrix(params: Any) -> Any:
    return optcore.map_tensors(lambda p: p.ndim > 1, params)


def _by_rank(params: Any) -> Any:
    return optcore.map_tensors(lambda p: "high" if p.ndim > 1 else "low", params)


def _odd(step: Any) -> Any:
    return step % 2 == 1


def _growing(step: Any) -> Any:
    return 1 + step


def _halving(count: Any) -> Any:
    return 0.1 * 0.5**count


def _quiet(updates: Any, gradient_step: Any, params: Any) -> Any:
    return optcore.skip_large_updates(updates, gradient_step, params, 50.0)


def _adam(lr: Any = 0.1) -> optcore.GradientTransformation:
    return optcore.adam(lr=lr, eps=1e-2)


def _injected(lr: Any = 0.1) -> optcore.GradientTransformation:
    return optcore.inject_hyperparams(optcore.adam)(lr=lr, eps=1e-2)


def _row(
    name: str, factory: Callable[..., optcore.GradientTransformation], **promises: Any
) -> Case:
    """A case from a learning rate; the name begins with that of the combinator."""
    covers = (name.split("-")[0],)
    promises = {"per_leaf": False, **promises}
    return Case(name, factory, {"lr": 0.3}, also_covers=covers, **promises)


COMBINATORS: tuple[Case, ...] = (
    _row("chain", lambda lr: optcore.chain(optcore.clip_by_global_norm(0.6), _adam(lr))),
    _row("chain-empty", lambda lr: optcore.chain(optcore.chain(), optcore.scale(lr))),
    _row(
        "named_chain",
        lambda lr: optcore.named_chain(("adam", _adam(lr)), ("half", optcore.scale(0.5))),
    ),
    _row("with_extra_args_support", lambda lr: optcore.with_extra_args_support(_adam(lr))),
    _row(
        "masked",
        lambda lr: optcore.masked(_adam(lr), {"w": True, "b": False}),
        any_tree=False,
    ),
    _row("masked-function", lambda lr: optcore.masked(_adam(lr), _is_matrix)),
    _row(
        "freeze",
        lambda lr: optcore.chain(_adam(lr), optcore.freeze({"w": True, "b": False})),
        any_tree=False,
    ),
    _row(
        "partition",
        lambda lr: optcore.partition(
            {"high": _adam(lr), "low": optcore.sgd(lr=0.2, momentum=0.9)}, _by_rank
        ),
    ),
    _row(
        "multi_transform",
        lambda lr: optcore.multi_transform(
            {"w": _adam(lr), "b": optcore.sgd()}, {"w": "w", "b": "b"}
        ),
        any_tree=False,
    ),
    _row(
        "selective_transform",
        lambda lr: optcore.selective_transform(_adam(lr), freeze_mask=_is_matrix),
    ),
    _row("multi_steps", lambda lr: optcore.multi_steps(_adam(lr), 2)),
    _row("multi_steps-schedule", lambda lr: optcore.multi_steps(_adam(lr), _growing, False)),
    _row("multi_steps-skip", lambda lr: optcore.multi_steps(_adam(lr), 2, True, _quiet)),
    _row(
        "multi_steps-skip-not-finite",
        lambda lr: optcore.multi_steps(_adam(lr), 1, True, optcore.skip_not_finite),
    ),
    _row("apply_every", lambda lr: optcore.chain(_adam(lr), optcore.apply_every(3))),
    _row("apply_if_finite", lambda lr: optcore.apply_if_finite(_adam(lr), 2)),
    _row("conditionally_transform", lambda lr: optcore.conditionally_transform(_adam(lr), _odd)),
    _row("conditionally_mask", lambda lr: optcore.conditionally_mask(_adam(lr), _odd)),
    _row("lookahead", lambda lr: optcore.lookahead(_adam(lr), 2, 0.5)),
    _row("lookahead-reset", lambda lr: optcore.lookahead(_adam(0.1), 2, lr, reset_state=True)),
    _row(
        "schedule_free",
        lambda lr: optcore.schedule_free(optcore.scale(-0.2), lr, 0.8),
        per_leaf=True,
    ),
    _row(
        "schedule_free-changing",
        lambda lr: optcore.schedule_free(_adam(_halving), _growing, lr, 0.5),
        schedules=False,
    ),
    _row("flatten", lambda lr: optcore.flatten(_adam(lr)), none_leaves=False),
    _row("inject_hyperparams", _injected),
    _row(
        "inject_hyperparams-schedule",
        lambda lr: optcore.chain(_injected(_halving), optcore.scale(lr)),
    ),
    _row("scheduled", lambda lr: _adam(optcore.cosine_decay_schedule(lr, 3, 0.2)), schedules=False),
    Case(
        "tree-of-rates",
        optcore.adam,
        {"lr": {"w": 0.1, "b": 0.3}, "eps": 1e-2},
        any_tree=False,
        per_leaf=False,
    ),
)
