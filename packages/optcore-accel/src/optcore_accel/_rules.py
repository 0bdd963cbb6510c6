# SPDX-License-Identifier: Apache-2.0
r"""The rules that kernels know: their numbers in the compiled modules, scalars and torch formulas.

A rule turns a gradient and buffers into an update and new buffers. Where something is
differentiated, its scalars are made of hyperparameters and the step count here, in torch, and so
are differentiated by torch; in place the compiled modules make them. The formulas say the same as
those of the compiled modules in torch's operations: what is differentiated twice or in forward mode
goes through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Scalar: TypeAlias = "float | torch.Tensor"
Formula: TypeAlias = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: What errors call it.
        number: As the compiled modules count.
        buffers: How many it keeps.
        hyperparams: For each transformation in it, the names of the hyperparameters in the order of
            the compiled modules, and their defaults.
        scalars: ``scalars(count, **hyperparams) -> list``; of several transformations,
            ``scalars(count, *hyperparams)``.
        formula: ``formula(scalars, g, *buffers) -> (u, *buffers)``.
        linear: Whether its derivatives, but for those in the scalars, are the same everywhere.
    """

    name: str
    number: int
    buffers: int
    hyperparams: tuple[Mapping[str, float], ...]
    scalars: Callable[..., list[Scalar]]
    formula: Formula
    linear: bool = False

    def scalars_at(self, count: Scalar, given: Sequence[Mapping[str, Any]]) -> list[Scalar]:
        """The scalars at a step, from the hyperparameters of each transformation."""
        return self.scalars(count, **given[0]) if len(given) == 1 else self.scalars(count, *given)

    def ordered(self, given: Sequence[Mapping[str, Any]]) -> list[Scalar]:
        """The hyperparameters of each transformation as the compiled modules want them."""
        pairs = zip(self.hyperparams, given, strict=True)
        values = [own.get(name, d) for names, own in pairs for name, d in names.items()]
        return [value if isinstance(value, torch.Tensor) else float(value) for value in values]

    def then(self, name: str, number: int, following: Rule) -> Rule:
        """Both, one after the other."""
        own = len(self.scalars(1.0, **dict.fromkeys(*self.hyperparams, 0.5)))

        def formula(
            scalars: Sequence[Scalar], g: torch.Tensor, *buffers: torch.Tensor
        ) -> tuple[torch.Tensor, ...]:
            between, *first = self.formula(scalars[:own], g, *buffers[: self.buffers])
            u, *second = following.formula(scalars[own:], between, *buffers[self.buffers :])
            return (u, *first, *second)

        def scalars(count: Scalar, first: dict[str, Any], second: dict[str, Any]) -> list[Scalar]:
            return [*self.scalars(count, **first), *following.scalars(count, **second)]

        buffers = self.buffers + following.buffers
        hyperparams = self.hyperparams + following.hyperparams
        return Rule(name, number, buffers, hyperparams, scalars, formula)


# ---- scalars -----------------------------------------------------------------------------------


def _times(number: Scalar, factor: Scalar) -> Scalar:
    return 0.0 if isinstance(number, float) and number == 0.0 else number * factor


def _corrected(
    count: Scalar, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar
) -> list[Scalar]:
    r"""The step :math:`k \mu / (\sqrt{\nu + r} + e)`: bias corrections moved off the tensors."""
    first, second = 1 - b1**count, 1 - b2**count
    root = second.sqrt() if isinstance(second, torch.Tensor) else math.sqrt(second)
    return [b1, b2, _times(eps, root), _times(eps_root, second), root / first]


def _momentum(
    count: Scalar, decay: Scalar, nesterov: bool = False, dampening: Scalar = 0.0
) -> list[Scalar]:
    share: Scalar = 1.0
    if isinstance(dampening, torch.Tensor) or dampening != 0.0:
        if isinstance(count, torch.Tensor):
            share = torch.where(count > 1, 1.0 - dampening, torch.ones_like(count))
        else:
            share = 1.0 - dampening if count > 1 else 1.0
    return [decay, share, float(nesterov)]


def _root(count: Scalar, decay: Scalar, eps: Scalar, eps_root: Scalar) -> list[Scalar]:
    return [decay, eps, eps_root]


def _sum(count: Scalar, eps: Scalar, eps_root: Scalar, lr_decay: Scalar = 0.0) -> list[Scalar]:
    plain = isinstance(lr_decay, float) and lr_decay == 0.0
    return [eps, eps_root, 1.0 if plain else 1 / (1 + (count - 1) * lr_decay)]


def _sign(count: Scalar, b1: Scalar, b2: Scalar) -> list[Scalar]:
    return [b1, b2]


def _none(count: Scalar) -> list[Scalar]:
    return []


# ---- formulas ----------------------------------------------------------------------------------


def _safe_sqrt(square: torch.Tensor) -> torch.Tensor:
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()


def _descent_formula(s: Sequence[Scalar], g: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (g,)


def _adam_formula(
    s: Sequence[Scalar], g: torch.Tensor, mu: torch.Tensor, nu: torch.Tensor, *maximum: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    b1, b2, e, r, k = s
    mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
    maximum = tuple(old.maximum(nu) for old in maximum)
    square = maximum[0] if maximum else nu
    return (mu / (_safe_sqrt(square + r) + e) * k, mu, nu, *maximum)


def _trace_formula(
    s: Sequence[Scalar], g: torch.Tensor, old: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    decay, share, nesterov = s
    new = decay * old + share * g
    return (g + decay * new if nesterov else new), new


def _rms_formula(
    s: Sequence[Scalar], g: torch.Tensor, nu: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    decay, eps, eps_root = s
    nu = decay * nu + (1 - decay) * g * g
    return g / (_safe_sqrt(nu + eps_root) + eps), nu


def _stddev_formula(
    s: Sequence[Scalar], g: torch.Tensor, mu: torch.Tensor, nu: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    decay, eps, eps_root = s
    mu, nu = decay * mu + (1 - decay) * g, decay * nu + (1 - decay) * g * g
    variance = (nu - mu * mu).clamp_min(0.0)
    return g / (_safe_sqrt(variance + eps_root) + eps), mu, nu


def _rss_formula(
    s: Sequence[Scalar], g: torch.Tensor, total: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    eps, eps_root, k = s
    total = total + g * g
    return g / (_safe_sqrt(total + eps_root) + eps) * k, total


def _lion_formula(
    s: Sequence[Scalar], g: torch.Tensor, mu: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    b1, b2 = s
    return (b1 * mu + (1 - b1) * g).sign(), b2 * mu + (1 - b2) * g


# ---- the table ---------------------------------------------------------------------------------

_MOMENTS = {"b1": 0.0, "b2": 0.0, "eps": 0.0, "eps_root": 0.0}
_DECAYED = {"decay": 0.0, "eps": 0.0, "eps_root": 0.0}
_SHARE = {"decay": 0.0, "dampening": 0.0, "nesterov": 0.0}
_SUMMED = {"eps": 0.0, "eps_root": 0.0, "lr_decay": 0.0}
_SIGNED = {"b1": 0.0, "b2": 0.0}

DESCENT = Rule("gradient descent", 0, 0, (), _none, _descent_formula, linear=True)
ADAM = Rule("scale_by_adam", 1, 2, (_MOMENTS,), _corrected, _adam_formula)
AMSGRAD = Rule("scale_by_amsgrad", 2, 3, (_MOMENTS,), _corrected, _adam_formula)
TRACE = Rule("trace", 3, 1, (_SHARE,), _momentum, _trace_formula, linear=True)
RMS = Rule("scale_by_rms", 4, 1, (_DECAYED,), _root, _rms_formula)
STDDEV = Rule("scale_by_stddev", 5, 2, (_DECAYED,), _root, _stddev_formula)
RSS = Rule("scale_by_rss", 6, 1, (_SUMMED,), _sum, _rss_formula)
LION = Rule("scale_by_lion", 7, 1, (_SIGNED,), _sign, _lion_formula, linear=True)
RMS_TRACE = RMS.then("scale_by_rms, trace", 8, TRACE)
STDDEV_TRACE = STDDEV.then("scale_by_stddev, trace", 9, TRACE)

RULES = {rule.name: rule for rule in (ADAM, AMSGRAD, TRACE, RMS, STDDEV, RSS, LION)}
