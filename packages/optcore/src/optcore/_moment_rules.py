# SPDX-License-Identifier: Apache-2.0
"""What Adam and its relatives share: moments, bias correction, the chain around the rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._deferred import defers
from optcore._hyperparams import Hyperparam, check_range, is_number, is_zero
from optcore._kernels import check_kernels, kernel_for
from optcore._leafwise import (
    Tick,
    counts_like,
    fit,
    full_like,
    leafwise,
    quotient,
    root_plus,
    safe_sqrt,
    scaled,
    takes_numbers,
)
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree
from optcore._weight_decay import add_decayed_weights


class ScaleByAdamState(NamedTuple):
    """A count and two moments; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # decayed average of gradients
    nu: Tree  # second moment, by the rule of the transformation


@dataclass(frozen=True)
class Rule:
    """What makes one of these transformations: all of its fields are values."""

    who: str
    formula: Callable[..., Any]  # (g, *moments, tick, inplace, **hyperparams) -> (u, *moments)
    state: type  # a NamedTuple of the count and the moments
    start: float
    requires_grad: bool
    use_accelerated_op: bool = False

    def __repr__(self) -> str:
        return self.formula.__name__.lstrip("_")


def with_moments(
    who: str,
    formula: Callable[..., Any],
    *,
    state: type = ScaleByAdamState,
    start: float = 0.0,
    requires_grad: bool = False,
    use_accelerated_op: bool = False,
    **hyperparams: Any,
) -> GradientTransformation:
    """A transformation whose state is a count and moments, all of which start at one value."""
    check_moments(who, **hyperparams)
    check_kernels(who, use_accelerated_op, who)
    static = {"rule": Rule(who, formula, state, start, requires_grad, use_accelerated_op)}
    return GradientTransformation(_moments_init, _moments_update, hyperparams, static, name=who)


def check_moments(who: str, **hyperparams: Any) -> None:
    """Decays ``b1``, ``b2`` in ``[0, 1)``, everything else >= 0."""
    for name, value in hyperparams.items():
        if name in ("b1", "b2"):
            check_range(who, name, value, 0.0, 1.0, open_high=True)
        else:
            check_range(who, name, value, 0.0)


def descend(
    who: str,
    rule: GradientTransformation,
    lr: Hyperparam,
    weight_decay: Hyperparam,
    maximize: bool,
    decoupled: bool = False,
    mask: Tree | Callable[[Tree], Tree] | None = None,
) -> GradientTransformation:
    """The chain around a rule: sign, penalty, the rule, decoupled decay, learning rate."""
    check_range(who, "lr", lr, 0.0)
    check_range(who, "weight_decay", weight_decay, 0.0)
    decay = [] if is_zero(weight_decay) else [link(who, add_decayed_weights, weight_decay, mask)]
    return chain(
        *uphill(who, maximize),
        *([] if decoupled else decay),
        rule,
        *(decay if decoupled else []),
        scale_by_learning_rate(lr),
    ).named(who)


def adam_step(
    mu: Any, nu: Any, tick: Tick, inplace: bool, b1: Any, b2: Any, eps: Any, eps_root: Any
) -> Any:
    r"""The step :math:`\hat\mu / (\sqrt{\hat\nu + \epsilon_r} + \epsilon)`."""
    # the bias corrections c1 and c2 are moved off the tensors
    first, second = tick.derive(bias_correction, b1), tick.derive(bias_correction, b2)
    root = second**0.5
    if not is_zero(eps_root):
        nu = nu + fit(eps_root * second, nu)
    if not inplace and all(map(is_number, (first, second, eps))):
        # one operation and one derivative less: the scale goes into the sum
        return mu / torch.rsub(safe_sqrt(nu), eps * first, alpha=-first / root)
    return scaled(quotient(mu, root_plus(nu, eps * root, inplace)), root / first)


@takes_numbers
def bias_correction(count: Any, decay: Any) -> Any:
    r""":math:`1 - d^t`, by which an average that started at zero is too small."""
    if not isinstance(count, torch.Tensor):
        return 1 - decay**count
    decay = decay.to(torch.float64) if isinstance(decay, torch.Tensor) else decay
    return 1 - torch.pow(decay, count)


def _moments_init(params: Tree, *, rule: Rule, **_: Any) -> NamedTuple:
    moments = (
        full_like(rule.who, params, rule.start, requires_grad=rule.requires_grad)
        for _ in rule.state._fields[1:]
    )
    return rule.state(counts_like(params), *moments)


@defers
def _moments_update(
    updates: Tree, state: Any, params: Tree, *, inplace: bool, rule: Rule, **hyperparams: Any
) -> tuple[Tree, NamedTuple]:
    count, *moments = state
    updates, *moments, count = leafwise(
        rule.who,
        partial(rule.formula, inplace=inplace),
        updates,
        *moments,
        counts=count,
        inplace=inplace,
        kernel=kernel_for(rule.who, rule.use_accelerated_op),
        **hyperparams,
    )
    return updates, rule.state(count, *moments)
