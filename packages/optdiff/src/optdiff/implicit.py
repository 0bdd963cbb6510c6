# SPDX-License-Identifier: Apache-2.0
"""Derivatives of solutions: of roots and fixed points, whatever found them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import treeops
from optdiff._at_root import root_jvp as root_jvp
from optdiff._at_root import root_vjp as root_vjp
from optdiff._root_problem import Problem, Solve
from optdiff._trees import NAMESPACE, Tree
from optdiff._uncompiled import uncompiled
from optdiff.linear_solve import LinearSolver, solve_gmres
from optdiff.linear_solve._given import adapt
from optdiff.linear_solve._operators import like, shapes

_DEFAULT = solve_gmres()


def custom_root(
    optimality_fn: Callable[..., Tree],
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
    solve: LinearSolver | Callable[..., Tree] | None = None,
) -> Callable[[Solve], Solve]:
    r"""Give a solver the derivatives of the root that it finds.

    .. math::
        F(x^\star(\theta), \theta) = 0 \quad\Rightarrow\quad
        \frac{\partial x^\star}{\partial\theta} =
        -\Bigl(\frac{\partial F}{\partial x}\Bigr)^{-1} \frac{\partial F}{\partial\theta}

    The decorated ``solve(init, *args, **kwargs)`` runs on detached tensors with grad enabled: what
    it does, and in how many steps, leaves no trace in the derivative.

    Args:
        optimality_fn: ``optimality_fn(solution, *args, **kwargs)``, zero at the solution and of
            its structure: the initial guess is replaced by the solution. Often a gradient:
            ``torch.func.grad(objective)``, or torch.autograd.grad with ``create_graph=True``.
        argnums: Positions in the solver's signature to differentiate in, from 1; None for every
            floating tensor in the arguments, keywords and modules but the initial guess.
        has_aux: Whether the solver returns ``(solution, aux)``; ``aux`` carries no gradient.
        solve: Linear solver for the derivative; :func:`optdiff.linear_solve.solve_gmres` by
            default, which needs no symmetry. For minima ``solve_cg()`` is cheaper. A function
            ``solve(matvec, b)`` will do.

    Returns:
        A decorator for ``solve(init, *args, **kwargs)``, whose solution is any tree of floating
        tensors. ``init`` may be None.

    Differentiable:
        In reverse and forward mode, to any order, under ``vmap`` and the other transforms of
        ``torch.func`` but ``linearize``; not in batches of torch.autograd (``is_grads_batched``,
        ``vectorize``), for which there are ``jacrev`` and ``jacfwd``. The initial guess carries no
        gradient.

    Raises:
        ValueError: ``argnums`` contains 0, or a position that there is not.
        ValueError: When called: the optimality is not like the solution, or closes over a tensor
            that requires grad, which would get no gradient.
        TypeError: When called: the solution is no tree of floating tensors.

    Warns:
        ConvergenceWarning: In the derivative, when the linear solver does not converge;
            an error with ``solve_...(on_failure="raise")``.

    Example:
        >>> import torch
        >>> @custom_root(lambda x, a: x**2 - a)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a), a)[0]
        tensor(0.2500)

    Reference:
        Blondel et al., 2022, arXiv:2105.15183, equations 2 and 3.
    """
    if not callable(optimality_fn):
        raise TypeError(
            f"custom_root: expected a callable optimality_fn, got {type(optimality_fn).__name__}"
        )
    positions = _positions("custom_root", argnums)
    solver = _DEFAULT if solve is None else adapt("custom_root", solve)

    def decorate(solve_fn: Solve) -> Solve:
        problem = Problem("custom_root", optimality_fn, solve_fn, positions, has_aux, solver)

        @uncompiled
        @functools.wraps(solve_fn)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return problem(args, kwargs)

        return wrapped

    return decorate


def custom_fixed_point(
    fixed_point_fn: Callable[..., Tree],
    argnums: int | tuple[int, ...] | None = None,
    has_aux: bool = False,
    solve: LinearSolver | Callable[..., Tree] | None = None,
) -> Callable[[Solve], Solve]:
    r"""Give a solver the derivatives of the fixed point that it finds.

    .. math::
        x^\star = T(x^\star, \theta),

    that is the root of :math:`x - T(x, \theta)`: the linear systems have the matrix
    :math:`I - \partial T/\partial x`.

    Args:
        fixed_point_fn: ``fixed_point_fn(solution, *args, **kwargs)`` of the solution's structure.
        argnums: As for :func:`custom_root`, and so are the others.
        has_aux: Whether the solver returns ``(solution, aux)``.
        solve: Linear solver; :func:`optdiff.linear_solve.solve_neumann` suits contractions, for
            which its series converges.

    Returns:
        A decorator for ``solve(init, *args, **kwargs)``.

    Differentiable:
        As :func:`custom_root`.

    Raises:
        ValueError: As :func:`custom_root`.

    Example:
        >>> import torch
        >>> @custom_fixed_point(lambda x, a: (x + a / x) / 2)
        ... def square_root(init, a):
        ...     return a.sqrt()
        >>> a = torch.tensor(4.0, requires_grad=True)
        >>> torch.autograd.grad(square_root(None, a), a)[0]
        tensor(0.2500)

    Reference:
        Bai et al., 2019, arXiv:1909.01377, theorem 1.
    """
    return custom_root(partial(_step, fixed_point_fn), argnums, has_aux, solve)


def _step(fixed_point_fn: Callable[..., Tree], solution: Tree, *args: Any, **kwargs: Any) -> Tree:
    image = fixed_point_fn(solution, *args, **kwargs)
    leaves, spec = treeops.tree_flatten(solution, namespace=NAMESPACE)
    expected = shapes(tuple(leaves))
    moved = like("custom_fixed_point", "the fixed point's image", spec, expected, image)
    return treeops.tree_unflatten(
        spec, [before - after for before, after in zip(leaves, moved, strict=True)]
    )


def _positions(who: str, argnums: int | tuple[int, ...] | None) -> tuple[int, ...] | None:
    if argnums is None:
        return None
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not positions or any(not isinstance(p, int) or p < 1 for p in positions):
        raise ValueError(
            f"{who}: expected argnums from 1 on, got {argnums}; argument 0 is the initial guess, "
            "which the solution does not depend on"
        )
    return positions
