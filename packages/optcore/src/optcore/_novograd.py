# SPDX-License-Identifier: Apache-2.0
"""NovoGrad: one second moment per parameter tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from optcore._chain import chain, link
from optcore._hyperparams import Hyperparam, check_betas, check_range
from optcore._leafwise import Tick, counts_like, fit, leafwise, safe_sqrt, zeros_like
from optcore._rows import OptimizerRow
from optcore._scaling import scale_by_learning_rate, uphill
from optcore._transform import GradientTransformation
from optcore._tree import Tree, tree_map


class ScaleByNovogradState(NamedTuple):
    """Moments kept by :func:`scale_by_novograd`; every field is a tree like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # momentum of the normalised gradients
    nu: Tree  # []: decayed average of the squared norm of the whole tensor


def scale_by_novograd(
    b1: Hyperparam = 0.9,
    b2: Hyperparam = 0.25,
    eps: Hyperparam = 1e-8,
    eps_root: Hyperparam = 0.0,
    weight_decay: Hyperparam = 0.0,
) -> GradientTransformation:
    r"""Normalise each gradient tensor by the history of its norm, then accumulate.

    With :math:`\nu_1 = \lVert g_1 \rVert^2` and :math:`\mu_0 = 0`:

    .. math::
        \nu_t &= b_2\,\nu_{t-1} + (1 - b_2)\,\lVert g_t \rVert^2 \\
        u_t = \mu_t &= b_1\,\mu_{t-1} + \frac{g_t}{\sqrt{\nu_t + \epsilon_r} + \epsilon}
            + \lambda\,\theta

    Args:
        b1: Decay of the momentum, in ``[0, 1)``.
        b2: Decay of the squared norm, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, added to the root.
        eps_root: :math:`\epsilon_r \ge 0`, added under the root.
        weight_decay: :math:`\lambda \ge 0`, inside the momentum.

    State:
        ``mu``: like ``params``; ``nu``: a scalar for each.

    Differentiable:
        In everything, twice; where a tensor's norm is 0 its derivative is 0.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> tx = scale_by_novograd()
        >>> params = [torch.zeros(2)]
        >>> tx.update([torch.tensor([3.0, 4.0])], tx.init(params), params)[0]
        [tensor([0.6000, 0.8000])]

    Reference:
        Ginsburg et al., 2019, arXiv:1905.11286, Algorithm 1.
    """
    who = "scale_by_novograd"
    check_range(who, "b1", b1, 0.0, 1.0, open_high=True)
    check_range(who, "b2", b2, 0.0, 1.0, open_high=True)
    for name, value in (("eps", eps), ("eps_root", eps_root), ("weight_decay", weight_decay)):
        check_range(who, name, value, 0.0)
    hyperparams = {"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root}
    return GradientTransformation(
        _novograd_init,
        _novograd_update,
        {**hyperparams, "weight_decay": weight_decay},
        name=who,
        needs_params=True,
    )


def novograd(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.9, 0.25),
    eps: Hyperparam = 1e-6,
    weight_decay: Hyperparam = 0.0,
    *,
    eps_root: Hyperparam = 0.0,
    maximize: bool = False,
) -> GradientTransformation:
    """NovoGrad: :func:`scale_by_novograd` and a learning rate; equals ``optax.novograd``.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Added to the root, >= 0.
        weight_decay: Rate >= 0, inside the momentum.
        eps_root: Added under the root, >= 0.
        maximize: Ascend instead of descend.

    Raises:
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> import torch
        >>> opt = novograd(lr=0.1)
        >>> params = [torch.zeros(2)]
        >>> opt.update([torch.tensor([3.0, 4.0])], opt.init(params), params)[0]
        [tensor([-0.0600, -0.0800])]

    Reference:
        Ginsburg et al., 2019, arXiv:1905.11286, Algorithm 1.
    """
    check_range("novograd", "lr", lr, 0.0)
    b1, b2 = check_betas("novograd", betas)
    return chain(
        *uphill("novograd", maximize),
        link("novograd", scale_by_novograd, b1, b2, eps, eps_root, weight_decay),
        scale_by_learning_rate(lr),
    ).named("novograd")


ROWS = (OptimizerRow(novograd, "NovoGrad", {"count": "step", "mu": "exp_avg", "nu": "norm_sq"}),)


def _novograd_init(params: Tree, **_: Any) -> ScaleByNovogradState:
    mu = zeros_like("scale_by_novograd", params)
    nu = tree_map(lambda m: None if m is None else m.new_zeros(()), mu)
    return ScaleByNovogradState(counts_like(params), mu, nu)


def _novograd_update(
    updates: Tree,
    state: ScaleByNovogradState,
    params: Tree,
    *,
    inplace: bool,
    **hyperparams: Any,
) -> tuple[Tree, ScaleByNovogradState]:
    def formula(
        g: torch.Tensor,
        mu: torch.Tensor,
        nu: torch.Tensor,
        param: torch.Tensor,
        *,
        tick: Tick,
        b1: Any,
        b2: Any,
        eps: Any,
        eps_root: Any,
        weight_decay: Any,
    ) -> Any:
        g = g.to(mu.dtype)
        fresh = tick.derive(_weight_of_norm, b2)
        nu = nu * fit(1 - fresh, nu) + g.square().sum() * fit(fresh, nu)
        scaled = g / (safe_sqrt(nu + fit(eps_root, nu), inplace) + fit(eps, nu))
        mu = mu * fit(b1, mu) + scaled + param * fit(weight_decay, param)
        return mu, mu, nu

    updates, mu, nu, count = leafwise(
        "scale_by_novograd",
        formula,
        updates,
        state.mu,
        state.nu,
        counts=state.count,
        params=params,
        **hyperparams,
    )
    return updates, ScaleByNovogradState(count, mu, nu)


def _weight_of_norm(count: torch.Tensor, b2: Any) -> torch.Tensor:
    """The first norm counts in full."""
    return torch.where(count > 1, 1.0 - b2, torch.ones_like(count))
