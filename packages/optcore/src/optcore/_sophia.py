# SPDX-License-Identifier: Apache-2.0
"""Sophia: momentum over an estimate of the Hessian's diagonal, clipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from optcore._chain import link
from optcore._choice import check_int, cond
from optcore._hyperparams import Hyperparam, check_betas, check_flag, check_range
from optcore._leafwise import Tick, counts_like, ema, fit, leafwise, zeros_like
from optcore._masking import check_transformation
from optcore._moment_rules import bias_correction, check_moments, descend
from optcore._noise import AddNoiseState, check_seed, keys_of, seed_of, uniform
from optcore._rows import OptimizerRow
from optcore._transform import GradientTransformation, new_count
from optcore._tree import Tree, flatten_like, tree_flatten, tree_leaves, tree_unflatten


class SophiaState(NamedTuple):
    """State of :func:`scale_by_sophia`; ``count``, ``mu`` and ``nu`` are like the parameters."""

    count: Tree  # i64[]: updates that this leaf had
    mu: Tree  # decayed average of gradients
    nu: Tree  # decayed average of estimates of the Hessian's diagonal
    step: torch.Tensor  # i64[]: updates so far
    hessian_fn_state: Tree


def hutchinson_estimator_diag_hessian(seed: int | torch.Tensor = 0) -> GradientTransformation:
    r"""Turn gradients into an unbiased estimate of the Hessian's diagonal.

    With random signs :math:`z`: :math:`u = z \odot \nabla^2 L(\theta)\,z`. ``update`` wants
    ``params`` and the extra argument ``obj_fn``, which computes :math:`L` from parameters.

    Args:
        seed: An int, or an int64 tensor ``()``; the signs are a function of it, of the update's
            count and of the element's place.

    State:
        ``count`` and ``seed``, as :func:`add_noise` has them.

    Differentiable:
        As often as ``obj_fn``, less two.

    Raises:
        TypeError: ``seed`` is no int; in ``update``, no ``obj_fn``.
        ValueError: ``update`` was given no ``params``.

    Differs:
        optax takes a JAX key; the signs are others.

    Example:
        >>> tx = hutchinson_estimator_diag_hessian()
        >>> params = [torch.tensor([1.0, 2.0])]
        >>> tx.update(params, tx.init(params), params, obj_fn=lambda p: p[0].pow(3).sum())[0]
        [tensor([ 6., 12.])]

    Reference:
        Liu et al., 2024, arXiv:2305.14342, Algorithm 1.
    """
    who = "hutchinson_estimator_diag_hessian"
    check_seed(who, seed)
    return GradientTransformation(
        _hutchinson_init, _hutchinson_update, static={"seed": seed}, name=who, needs_params=True
    )


def scale_by_sophia(
    b1: Hyperparam = 0.965,
    b2: Hyperparam = 0.99,
    eps: Hyperparam = 1e-8,
    gamma: Hyperparam = 0.01,
    clip_threshold: Hyperparam | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation | None = None,
) -> GradientTransformation:
    r"""Scale a momentum by an estimate of the Hessian's diagonal, and clip.

    .. math::
        \mu_t &= b_1 \mu_{t-1} + (1 - b_1)\,g_t \\
        u_t &= \operatorname{clip}\left(
            \frac{\mu_t / (1 - b_1^t)}{\max(\gamma\,\nu_{t-1}, \epsilon)}, \pm \rho\right) \\
        \nu_t &= b_2 \nu_{t-1} + (1 - b_2)\,\hat h_t \quad
            \text{every } k \text{ updates, else } \nu_{t-1}

    Args:
        b1: Decay of the momentum, in ``[0, 1)``.
        b2: Decay of the estimates, in ``[0, 1)``.
        eps: :math:`\epsilon \ge 0`, smallest divisor.
        gamma: :math:`\gamma \ge 0`: the larger, the more elements are not clipped.
        clip_threshold: :math:`\rho \ge 0`, or None not to clip.
        update_interval: :math:`k \ge 1`.
        hessian_diagonal_fn: Turns gradients into the estimate :math:`\hat h`; None is
            :func:`hutchinson_estimator_diag_hessian`, and ``update`` then wants ``obj_fn``. Extra
            arguments are handed to it.

    State:
        ``count``, ``mu``, ``nu``: like ``params``, start at zero; ``step``; and the estimator's.

    Differentiable:
        In everything, where nothing is clipped, and as the estimator.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such;
            ``hessian_diagonal_fn`` no transformation.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Differs:
        optax can print how much is clipped.

    Example:
        >>> tx = scale_by_sophia(gamma=1.0, clip_threshold=None, update_interval=1, eps=1.0)
        >>> params = [torch.tensor([1.0])]
        >>> tx.update([torch.ones(1)], tx.init(params), params, obj_fn=lambda p: p[0].sum())[0]
        [tensor([1.])]

    Reference:
        Liu et al., 2024, arXiv:2305.14342, Algorithm 3. Equals ``optax.contrib.scale_by_sophia``.
    """
    who = "scale_by_sophia"
    check_moments(who, b1=b1, b2=b2, eps=eps, gamma=gamma)
    hyperparams = {"b1": b1, "b2": b2, "eps": eps, "gamma": gamma}
    if clip_threshold is not None:
        check_range(who, "clip_threshold", clip_threshold, 0.0)
        hyperparams["clip_threshold"] = clip_threshold
    check_int(who, "update_interval", update_interval, 1)
    if hessian_diagonal_fn is None:
        hessian_diagonal_fn = hutchinson_estimator_diag_hessian()
    check_transformation(who, hessian_diagonal_fn, "hessian_diagonal_fn")
    static = {"update_interval": update_interval, "hessian_diagonal_fn": hessian_diagonal_fn}
    return GradientTransformation(
        _sophia_init, _sophia_update, hyperparams, static, name=who, needs_params=True
    )


def sophia(
    lr: Hyperparam = 1e-3,
    betas: tuple[Hyperparam, Hyperparam] = (0.965, 0.99),
    eps: Hyperparam = 1e-8,
    weight_decay: Hyperparam = 1e-4,
    *,
    gamma: Hyperparam = 0.01,
    clip_threshold: Hyperparam | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation | None = None,
    mask: Tree | Callable[[Tree], Tree] | None = None,
    maximize: bool = False,
) -> GradientTransformation:
    """Sophia: :func:`scale_by_sophia`, decoupled decay, learning rate.

    ``update`` wants ``params`` and the extra argument ``obj_fn``: the loss of the same batch as a
    function of parameters. The class takes it as ``step(obj_fn=...)``, of a dict of its parameters
    by their place in the group, of which there is one; the Meta class, by name.

    Args:
        lr: Learning rate >= 0.
        betas: ``(b1, b2)``, each in ``[0, 1)``.
        eps: Smallest divisor, >= 0.
        weight_decay: Decoupled rate >= 0.
        gamma: How large steps may be before they are clipped, >= 0.
        clip_threshold: Largest element of a step before ``lr``, or None.
        update_interval: Updates for each estimate, >= 1.
        hessian_diagonal_fn: The estimator; None is :func:`hutchinson_estimator_diag_hessian`.
        mask: Which parameters decay; see :func:`add_decayed_weights`.
        maximize: Ascend instead of descend: the estimator is told negated gradients and objective.

    State:
        That of :func:`scale_by_sophia`, inside the tuple of a :func:`chain`.

    Differentiable:
        As :func:`scale_by_sophia`, and in ``lr`` and ``weight_decay``.

    Raises:
        TypeError: A hyperparameter is no number, schedule, tensor or tree of such; in ``update``,
            no ``obj_fn``.
        ValueError: A hyperparameter outside its range; ``update`` was given no ``params``.

    Example:
        >>> opt = sophia(lr=0.1, weight_decay=0.0)
        >>> params = [torch.tensor([1.0])]
        >>> f = lambda p: p[0].square().sum()
        >>> opt.update([torch.tensor([2.0])], opt.init(params), params, obj_fn=f)[0]
        [tensor([-0.1000])]

    Reference:
        Liu et al., 2024, arXiv:2305.14342, Algorithm 3. Equals ``optax.contrib.sophia``.
    """
    who = "sophia"
    b1, b2 = check_betas(who, betas)
    check_flag(who, "maximize", maximize)
    if hessian_diagonal_fn is None:
        hessian_diagonal_fn = hutchinson_estimator_diag_hessian()
    check_transformation(who, hessian_diagonal_fn, "hessian_diagonal_fn")
    if maximize:
        hessian_diagonal_fn = _of_negated(hessian_diagonal_fn)
    rule = link(
        who,
        scale_by_sophia,
        b1,
        b2,
        eps,
        gamma,
        clip_threshold,
        update_interval,
        hessian_diagonal_fn,
    )
    return descend(who, rule, lr, weight_decay, maximize, decoupled=True, mask=mask)


ROWS = (OptimizerRow(sophia, "Sophia"),)


def _of_negated(estimator: GradientTransformation) -> GradientTransformation:
    """An estimator that is told the negated objective; gradients are negated before it."""
    return GradientTransformation(
        _negated_init,
        _negated_update,
        static={"estimator": estimator},
        name="sophia",
        needs_params=estimator.needs_params,
    )


def _negated_init(params: Tree, *, estimator: GradientTransformation) -> Tree:
    return estimator.init(params)


def _negated_update(
    updates: Tree,
    state: Tree,
    params: Tree,
    *,
    inplace: bool,
    estimator: GradientTransformation,
    obj_fn: Callable[[Tree], torch.Tensor] | None = None,
    **extra: Any,
) -> tuple[Tree, Tree]:
    if callable(obj_fn):
        extra["obj_fn"] = lambda params: -obj_fn(params)
    return estimator.apply(updates, state, params, inplace, extra)


def _hutchinson_init(params: Tree, *, seed: Any) -> AddNoiseState:
    return AddNoiseState(new_count(), seed_of(seed))


def _hutchinson_update(
    updates: Tree,
    state: AddNoiseState,
    params: Tree,
    *,
    inplace: bool,
    seed: Any,
    obj_fn: Callable[[Tree], torch.Tensor] | None = None,
    **extra: Any,
) -> tuple[Tree, AddNoiseState]:
    who = "hutchinson_estimator_diag_hessian"
    if not callable(obj_fn):
        raise TypeError(
            f"{who}: expected obj_fn=, got None; call update(updates, state, params, "
            "obj_fn=lambda params: loss)"
        )
    grads, spec = tree_flatten(updates)
    leaves = flatten_like(who, "params differ from updates", spec, params)
    moving = [i for i, grad in enumerate(grads) if grad is not None and leaves[i] is not None]
    keys = keys_of(state.seed, state.count, len(leaves))
    signs = [(uniform(keys[i], leaves[i]) - 0.5).sign().to(leaves[i].dtype) for i in moving]

    def loss(*own: torch.Tensor) -> torch.Tensor:
        given = list(leaves)
        for i, leaf in zip(moving, own, strict=True):
            given[i] = leaf
        return obj_fn(tree_unflatten(spec, given))

    numbers = tuple(range(len(moving)))
    slopes = torch.func.grad(loss, argnums=numbers) if moving else None

    def along(*own: torch.Tensor) -> torch.Tensor:
        return sum((g * z).sum() for g, z in zip(slopes(*own), signs, strict=True))

    found: list[torch.Tensor | None] = [None] * len(leaves)
    if moving:
        products = torch.func.grad(along, argnums=numbers)(*(leaves[i] for i in moving))
        for i, product, sign in zip(moving, products, signs, strict=True):
            found[i] = product * sign
    return tree_unflatten(spec, found), AddNoiseState(state.count + 1, state.seed)


def _sophia_init(
    params: Tree, *, hessian_diagonal_fn: GradientTransformation, **_: Any
) -> SophiaState:
    moments = (zeros_like("scale_by_sophia", params) for _ in range(2))
    estimator = hessian_diagonal_fn.init(params)
    return SophiaState(counts_like(params), *moments, new_count(), estimator)


def _sophia_update(
    updates: Tree,
    state: SophiaState,
    params: Tree,
    *,
    inplace: bool,
    b1: Any,
    b2: Any,
    eps: Any,
    gamma: Any,
    update_interval: int,
    hessian_diagonal_fn: GradientTransformation,
    clip_threshold: Any = None,
    **extra: Any,
) -> tuple[Tree, SophiaState]:
    who = "scale_by_sophia"

    def estimated(grads: Tree, inplace: bool) -> tuple[Tree, Tree]:
        given = grads, state.hessian_fn_state, params, inplace, extra
        return hessian_diagonal_fn.apply(*given)

    grads, due = updates, state.step % update_interval == 0
    nothing = [None if g is None else torch.zeros_like(g) for g in tree_leaves(grads)]
    none = tree_unflatten(tree_flatten(grads)[1], nothing)
    estimate, estimator = cond(
        who, due, grads, estimated, lambda: (none, state.hessian_fn_state), inplace
    )
    formula = partial(_sophia, inplace=inplace)
    bound = {} if clip_threshold is None else {"clip_threshold": clip_threshold}
    updates, mu, count = leafwise(
        who,
        formula,
        grads,
        state.mu,
        counts=state.count,
        params=state.nu,
        b1=b1,
        eps=eps,
        gamma=gamma,
        **bound,
    )

    def averaged(h: torch.Tensor, nu: torch.Tensor, *, b2: Any) -> Any:
        return h, ema(nu, h, b2, inplace)

    def average(estimate: Tree, inplace: bool) -> Tree:
        return leafwise(who, averaged, estimate, state.nu, b2=b2)[1]

    nu = cond(who, due, estimate, average, lambda: state.nu, inplace)
    return updates, SophiaState(count, mu, nu, state.step + 1, estimator)


def _sophia(
    g: torch.Tensor,
    mu: torch.Tensor,
    nu: torch.Tensor,
    *,
    tick: Tick,
    inplace: bool,
    b1: Any,
    eps: Any,
    gamma: Any,
    clip_threshold: Any = None,
) -> Any:
    mu = ema(mu, g, b1, inplace)
    divisor = torch.maximum(
        nu * fit(gamma, nu), torch.as_tensor(eps, dtype=nu.dtype, device=nu.device)
    )
    step = mu * fit(1 / tick.derive(bias_correction, b1), mu) / divisor
    if clip_threshold is not None:
        bound = torch.as_tensor(clip_threshold, dtype=step.dtype, device=step.device)
        step = step.clamp(-bound, bound)
    return step, mu
