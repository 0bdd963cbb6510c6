# SPDX-License-Identifier: Apache-2.0
"""Gradients from values alone: the decorator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import torch
from torch.autograd import forward_ad

import treeops
from optcore import describe
from optdiff._directions import Samplable, SampleFunc
from optdiff._explicit import Explicit, Rebuild
from optdiff._tracking import innermost_transform, is_tracked, is_wrapped
from optdiff._trees import NAMESPACE, Tree, tree_flatten, tree_leaves
from optdiff._uncompiled import uncompiled
from optdiff._zero_order_rule import Problem, value_by_estimate
from optdiff._zero_order_settings import Method, Settings, check_settings, check_sigma

Function: TypeAlias = Callable[..., Any]


def zero_order(
    distribution: SampleFunc | Samplable | None,
    method: Method = "naive",
    argnums: int | tuple[int, ...] = (0,),
    num_samples: int = 1,
    sigma: float | Tree = 1.0,
    *,
    generator: torch.Generator | None = None,
    chunk_size: int | None = None,
    vectorize: bool = True,
    rank_shaping: bool = False,
    baseline: Literal["mean"] | float | None = None,
    orthogonal: bool = False,
) -> Callable[[Function], Callable[..., torch.Tensor]]:
    r"""Give a function the gradient of its smoothed self, estimated from values alone.

    Nothing in the function is differentiated, so that it may do nearly anything: look at numbers,
    write to the arguments that move (it gets copies), draw random numbers. What it returns is its
    plain value :math:`f(\theta)`; the derivative estimates that of

    .. math::
        f_\sigma(\theta) = \mathbb E\, f(\theta + \sigma\varepsilon), \qquad
        \nabla f_\sigma(\theta) = \mathbb E\, f(\theta + \sigma\varepsilon)\,\varepsilon / \sigma

    (the second for Gaussian noise), with :math:`\varepsilon_i`, :math:`i \le n`, drawn anew at
    every call, as the mean over :math:`i` of

    .. math::
        \text{naive:} \quad & \bigl(f(\theta + \sigma\varepsilon_i) - b\bigr)\,
            \varepsilon_i / \sigma \\
        \text{forward:} \quad & \bigl(f(\theta + \sigma\varepsilon_i) - f(\theta)\bigr)\,
            \varepsilon_i / \sigma \\
        \text{antithetic:} \quad & \bigl(f(\theta + \sigma\varepsilon_i)
            - f(\theta - \sigma\varepsilon_i)\bigr)\,\varepsilon_i / (2\sigma)

    For a linear function with gradient :math:`g` and one Gaussian sample, the variances of forward
    and antithetic in a coordinate are :math:`\|g\|^2 + g_j^2`, whatever :math:`\sigma`; naive adds
    :math:`(f(\theta) - b)^2 / \sigma^2`. ``"finite_difference"`` uses no noise: central differences
    :math:`(f(\theta + \sigma e_j) - f(\theta - \sigma e_j)) / (2\sigma)` along every coordinate.

    Other noise than Gaussian needs :math:`\mathbb E\varepsilon = 0` and
    :math:`\mathbb E\varepsilon\varepsilon^\top = I`. The estimate is then unbiased for linear
    functions, and in general off :math:`\nabla f(\theta)` by :math:`O(\sigma^2)` if the noise is
    symmetric; it is not the gradient of :math:`f_\sigma`.

    Torch's random numbers in the function, such as dropout, are the same in all evaluations of a
    call: those drawn for the value, so that what is estimated is the gradient of the function with
    this mask, as autograd gives it. Masks average out over calls and over examples of a ``vmap``,
    not over samples. Afterwards torch goes on as after one plain call. Numbers from elsewhere
    (numpy, another generator) differ in every evaluation, and count :math:`1 / \sigma`.

    The function is called once for the value, and ``num_samples`` times more (naive, forward),
    twice that (antithetic), or twice the number of coordinates (finite differences), all in the
    forward pass; the noise takes ``num_samples`` times the memory of what it moves. Nothing more
    is called than the function itself where no gradient can be asked for.

    Args:
        distribution: A function of the sample shape ``(n, d)`` that returns such noise, or an
            object with a method ``sample`` like it, as any ``torch.distributions`` object of
            scalars. ``d`` counts the elements of all that moves. Not used by
            ``"finite_difference"``, where it may be None.
        method: ``"naive"``, ``"forward"``, ``"antithetic"`` or ``"finite_difference"``.
        argnums: Positions of the arguments to differentiate in; all their floating tensors move.
            They may be trees, and be given by keyword.
        num_samples: :math:`n \ge 1`, how many directions. Not used by ``"finite_difference"``.
        sigma: :math:`\sigma > 0`, how far to go: a number or tensor, or a prefix tree of such of
            the argument (of the tuple of arguments if there are several in ``argnums``). Not
            below four units in the last place of any number that moves, which in bfloat16 is
            :math:`0.03\,|\theta|`: rounding would make another step of it. The function's own
            rounding counts :math:`1 / \sigma`.
        generator: Where the directions come from, for distributions made of torch's random numbers;
            None for torch's own. Those in the function do not come from there. Threads need one
            each; a function that draws torch's numbers itself belongs in one thread at a time.
        chunk_size: How many directions to evaluate at a time; it changes time and memory only.
        vectorize: Evaluate by ``torch.vmap``; False calls the function with one sample after the
            other, for functions that look at numbers, differentiate by ``backward`` inside, or
            draw from what depends on the parameters (``multinomial``, ``bernoulli``).
        rank_shaping: Replace the values in the equations by their centered ranks in
            :math:`[-1/2, 1/2]`: a direction of ascent that no monotone change of the function
            moves, no gradient.
        baseline: :math:`b` of ``"naive"``, a control variate as :math:`\mathbb E\varepsilon = 0`:
            a number, or ``"mean"`` for the mean value of the *other* samples; both leave the
            estimate unbiased.
        orthogonal: Make the directions orthogonal, in blocks of as many as there are coordinates;
            the lengths stay. Every one is still Gaussian, and they no longer repeat each other.

    Differentiable:
        Once, in reverse mode; also under ``torch.func.grad``, ``jacrev`` and ``vmap`` with
        ``randomness="same"`` (the examples share their noise) or ``"different"`` (each has its own,
        whether or not an argument is batched; with ``generator`` all of it comes from there, in
        one draw). A second derivative and forward mode raise. Tensors that do not move get no
        gradient, so that one that requires grad raises: in the arguments, and past them where an
        operation reads it (closed over, a default, a global, a parameter of a module), even if
        its result is detached: call a constant network under ``torch.no_grad()``, which makes
        all that is read there constant, as do ``module.requires_grad_(False)`` and ``detach()``
        of the tensor itself. What the function makes for itself, such as a module that it trains,
        is its own, unless it keeps it.

    Raises:
        TypeError: An argument is of another type. When called: the function returned no floating
            tensor and no number; nothing to differentiate in; a complex tensor in ``argnums``
            requires grad; the noise is not real.
        ValueError: An argument is not as described; ``sigma`` requires grad or is of a transform.
            When called: the function returned no scalar, or writes to an argument that does not
            move; the noise is of another shape; ``sigma`` does not fit the argument, or is too
            small for its dtype; a tensor requires grad that is not in ``argnums``, or that the
            function reads past its arguments: it would silently get no gradient; the function
            reads a tensor of a transform that is hidden in an object.
        RuntimeError: When called: under ``vmap(randomness="error")``; ``torch.vmap`` cannot
            evaluate the function.
        NotImplementedError: In backward, for a second derivative; in forward mode.

    Differs:
        TorchOpt's ``"forward"`` multiplies by :math:`\sigma` where it should divide.

    Example:
        >>> @zero_order(torch.distributions.Normal(0, 1), "antithetic", num_samples=2000)
        ... def loss(params, x):
        ...     return (params["w"] * x).sum()
        >>> _ = torch.manual_seed(0)
        >>> w = torch.ones(2, requires_grad=True)
        >>> value = loss({"w": w}, x=torch.tensor([1.0, 3.0]))
        >>> value.item()
        4.0
        >>> (torch.autograd.grad(value, w)[0] - torch.tensor([1.0, 3.0])).abs().max() < 0.3
        tensor(True)

    Reference:
        Nesterov and Spokoiny, 2017, "Random gradient-free minimization of convex functions",
        sections 2 and 3 (Gaussian smoothing, forward and central differences along random
        directions); Salimans et al., 2017, arXiv:1703.03864, Algorithm 1 and section 2 (mirrored
        samples, ranks); Choromanski et al., 2018, arXiv:1804.02395, and Rowland et al., 2018,
        "Geometrically coupled Monte Carlo sampling" (orthogonal directions).
    """
    who = "zero_order"
    settings = check_settings(
        who, distribution, method, num_samples, generator, chunk_size, vectorize, rank_shaping,
        baseline, orthogonal,
    )  # fmt: skip
    positions = _positions(who, argnums)
    check_sigma(who, sigma)

    def decorate(fn: Function) -> Callable[..., torch.Tensor]:
        if not callable(fn):
            raise TypeError(f"{who}: expected a function to decorate, got {describe(fn)}")
        names = _positional_names(fn)

        @uncompiled
        @functools.wraps(fn)
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            slots: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
            moving = [_slot(who, position, slots, names) for position in positions]
            if innermost_transform() is None:
                return value_of_call(settings, sigma, fn, slots, moving)
            hidden = Explicit(is_wrapped)
            rebuild = hidden.add_function(fn)
            if not hidden.tensors:
                return value_of_call(settings, sigma, fn, slots, moving)
            explicit = {**slots, _CLOSED_OVER: hidden.tensors}
            return value_of_call(settings, sigma, _Opened(rebuild), explicit, moving)

        return wrapped

    return decorate


_CLOSED_OVER = "closed over"  # no parameter can have this name


class _Opened:
    """A function that is given what it closes over: a vmap sees only arguments."""

    def __init__(self, rebuild: Rebuild) -> None:
        self._rebuild = rebuild

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._rebuild(kwargs.pop(_CLOSED_OVER))(*args, **kwargs)


def _positions(who: str, argnums: int | tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(argnums, (int, tuple, list)):
        raise TypeError(f"{who}: expected argnums as an int or a tuple, got {describe(argnums)}")
    positions = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if (
        not positions
        or any(not isinstance(p, int) or isinstance(p, bool) or p < 0 for p in positions)
        or len({*positions}) < len(positions)
    ):
        raise ValueError(
            f"{who}: expected argnums as different positions from 0 on, got {argnums!r}"
        )
    return positions


def _positional_names(fn: Function) -> list[str]:
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except ValueError:  # written in C
        return []
    return [parameter.name for parameter in parameters if parameter.kind in positional]


def _slot(who: str, position: int, slots: dict[int | str, Any], names: list[str]) -> int | str:
    """Where the argument of a position stands: there, or under its name."""
    if position in slots:
        return position
    name = names[position] if position < len(names) else None
    if name not in slots:
        given = sum(isinstance(slot, int) for slot in slots)
        raise TypeError(
            f"{who}: expected an argument {position} to differentiate in, got {given} arguments"
        )
    return name


def value_of_call(
    settings: Settings,
    sigma: float | Tree,
    fn: Function,
    slots: dict[int | str, Any],
    moving: list[int | str],
) -> torch.Tensor:
    """``fn`` of the arguments in ``slots``, differentiable in those named by ``moving``."""
    order = [*moving, *(slot for slot in slots if slot not in moving)]
    values = [slots[slot] for slot in order]
    leaves, spec = tree_flatten(values)
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    chosen = values[0] if len(moving) == 1 else tuple(values[: len(moving)])
    among = range(len(tree_leaves(chosen)))
    moved = {
        place: index  # among the tensors
        for index, place in enumerate(places)
        if place in among and leaves[place].is_floating_point()
    }
    for place in places if torch.is_grad_enabled() else ():
        if place not in moved and is_tracked(leaves[place]):
            index, *path = treeops.tree_paths(values, none_is_leaf=True, namespace=NAMESPACE)[place]
            where = "".join(f"[{key!r}]" for key in (order[index], *path))
            if place in among:
                raise TypeError(
                    f"{settings.who}: expected real tensors to differentiate in, got "
                    f"{describe(leaves[place])}, at {where}; pass its real and imaginary parts "
                    "(torch.view_as_real), or detach it"
                )
            raise ValueError(
                f"{settings.who}: expected no other tensor that requires grad, got "
                f"{describe(leaves[place])}, at {where}, which would get no gradient; "
                "differentiate in it too or detach it"
            )
    if not moved:
        raise TypeError(
            f"{settings.who}: expected floating tensors to differentiate in, got "
            f"{describe(chosen)} without any"
        )

    def flat(tensors: Sequence[torch.Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors):  # more may follow that stand for vmaps
            filled[place] = tensor
        named = dict(zip(order, treeops.tree_unflatten(spec, filled), strict=True))
        args = [named.pop(slot) for slot in slots if isinstance(slot, int)]
        return fn(*args, **named)

    sigmas = _sigmas(settings.who, sigma, chosen, [leaves[place] for place in among])
    problem = Problem(
        settings,
        flat,
        tuple(moved.values()),
        tuple(sigmas[place] for place in moved),
        innermost_transform() is not None,
    )
    tensors = [leaves[place] for place in places]
    reverse = torch.is_grad_enabled() and any(is_tracked(leaves[place]) for place in moved)
    if reverse or forward_ad._current_level >= 0:  # the rule refuses forward mode
        return value_by_estimate(problem, tensors)
    return problem.plain_value(tensors)


def _sigmas(who: str, sigma: float | Tree, tree: Tree, leaves: list[Any]) -> list[Any]:
    """One step for every leaf."""
    if isinstance(sigma, (Real, torch.Tensor)):
        steps = [sigma] * len(leaves)
    else:
        try:
            steps = treeops.broadcast_prefix(sigma, tree, none_is_leaf=True, namespace=NAMESPACE)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{who}: sigma is not a prefix of the argument: {error}") from None
    for step, leaf in zip(steps, leaves, strict=True):
        if isinstance(step, torch.Tensor) and isinstance(leaf, torch.Tensor):
            axes = zip(reversed(step.shape), reversed(leaf.shape), strict=False)
            if step.ndim > leaf.ndim or any(own not in (1, theirs) for own, theirs in axes):
                raise ValueError(
                    f"{who}: expected sigma that broadcasts to {describe(leaf)}, got "
                    f"{describe(step)}"
                )
    return steps
