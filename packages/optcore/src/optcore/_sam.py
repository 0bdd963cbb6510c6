# SPDX-License-Identifier: Apache-2.0
"""Sharpness-aware minimization: gradients from where the loss nearby is worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from optcore._anchor import anchored, clones
from optcore._apply import apply_updates
from optcore._chain import chain
from optcore._choice import check_closure, check_int, cond
from optcore._declared import declares
from optcore._hyperparams import check_flag, check_number
from optcore._inject import injected
from optcore._leafwise import check_gradient, leafwise
from optcore._masking import check_transformation
from optcore._momentum import sgd
from optcore._normalization import normalize
from optcore._optimizer import Optimizer
from optcore._param_group import listed
from optcore._transform import EmptyState, GradientTransformation, new_count
from optcore._tree import Tree, describe, flatten_like, tree_flatten, tree_map, tree_unflatten


class SAMState(NamedTuple):
    """State of :func:`sam`."""

    steps_since_sync: torch.Tensor  # i64[]
    opt_state: Tree
    adv_state: Tree
    cache: Tree  # the parameters that a round started from; () in opaque mode


def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> GradientTransformation:
    r"""Climb to where the loss is worse, and descend from the start with the gradient found there.

    In a round of :math:`k` gradients, from :math:`\theta`, with :math:`v` the updates of
    ``adv_optimizer`` and :math:`u` those of ``optimizer``:

    .. math::
        \hat\theta_0 = \theta, \qquad
        \hat\theta_{i+1} = \hat\theta_i - v(\nabla L(\hat\theta_i)), \qquad
        \theta' = \theta + u(\nabla L(\hat\theta_{k-1}))

    The paper has :math:`k = 2` and ``adv_optimizer = chain(normalize(), sgd(lr=rho))``, and so has
    the class :class:`SAM`.

    Args:
        optimizer: Takes the steps downhill.
        adv_optimizer: Its steps are taken uphill.
        sync_period: :math:`k \ge 1`, gradients for each step downhill.
        reset_state: Start ``adv_optimizer`` afresh in each round: its buffers, and the step counts
            of its schedules too. A scheduled ascent needs False.
        opaque_mode: Take the whole round in one ``update``, which then wants the extra argument
            ``grad_fn(params, i) -> gradients`` for those after the first. Without it the updates of
            :math:`k - 1` calls lead uphill, and that of the next one back and downhill: evaluate
            the model only after that.

    State:
        ``steps_since_sync``, the states of both, and ``cache``: clones of the parameters.

    Differentiable:
        As both optimizers, through all gradients and parameters.

    Raises:
        TypeError: One of the optimizers is no transformation, ``sync_period`` no int; in
            ``update``, ``grad_fn`` missing in opaque mode.
        ValueError: ``sync_period`` below 1; ``update`` was given no ``params``.

    Differs:
        With ``sync_period=1`` optax goes on from the parameters of the round before.

    Example:
        >>> import optcore
        >>> uphill = optcore.chain(optcore.normalize(), optcore.sgd(lr=0.5))
        >>> tx = sam(optcore.sgd(lr=0.1), uphill)
        >>> params = [torch.tensor([1.0])]
        >>> state = tx.init(params)
        >>> for _ in range(2):  # of f(x) = x ** 2: up to 1.5, where the gradient is 3
        ...     updates, state = tx.update([2 * params[0]], state, params)
        ...     params = optcore.apply_updates(params, updates)
        >>> params
        [tensor([0.7000])]

    Reference:
        Foret et al., 2021, arXiv:2010.01412, Algorithm 1. Equals ``optax.contrib.sam``.
    """
    who = "sam"
    check_transformation(who, optimizer)
    check_transformation(who, adv_optimizer)
    check_int(who, "sync_period", sync_period, 1)
    check_flag(who, "reset_state", reset_state)
    check_flag(who, "opaque_mode", opaque_mode)
    static = {
        "optimizer": optimizer,
        "adv_optimizer": adv_optimizer,
        "sync_period": sync_period,
        "reset_state": reset_state,
    }
    update = _opaque_update if opaque_mode else _sam_update
    init = _opaque_init if opaque_mode else _sam_init
    return GradientTransformation(init, update, static=static, name=who, needs_params=True)


class SAM(Optimizer):
    r"""Sharpness-aware steps of any optimizer, as a ``torch.optim.Optimizer``.

    One ``step(closure)`` calls the closure twice, at the parameters :math:`\theta` and uphill of
    them, and hands the gradients found there to ``base``, from :math:`\theta`:

    .. math::
        \theta' = \theta + u\Bigl(\nabla L\Bigl(\theta
            + \rho\,\frac{\nabla L(\theta)}{\lVert \nabla L(\theta) \rVert}\Bigr)\Bigr)

    The norm is that of all gradients, whatever group they are in. Each step is a round of
    :func:`sam` with ``chain(normalize(), sgd(lr=rho))`` uphill; take that for other ascents.

    Args:
        params: Parameters, named parameters, or dicts of parameter groups.
        base: The optimizer in its functional form. What :func:`inject_hyperparams` keeps in its
            state stands in the groups, where schedulers find it.
        rho: :math:`\rho \ge 0`, how far uphill; a group may have its own.

    State:
        That of ``base``. During a step there is one copy of the parameters.

    Raises:
        TypeError: ``base`` is no transformation, ``rho`` no number; in ``step``, no closure, or a
            gradient that is sparse or complex.
        ValueError: ``rho`` is negative, in ``step`` too (nothing has changed then), or also an
            injected hyperparameter of ``base``.

    Differs:
        ``torch.distributed.checkpoint.state_dict.set_optimizer_state_dict`` steps without a closure
        in an optimizer that has no state, which is refused: take a step first, or
        ``load_state_dict``. GradScaler takes no closures. What a forward pass moves (statistics of
        batch norm, random numbers) moves twice in a step. If the closure raises, the parameters
        are as before.

    Example:
        >>> import optcore
        >>> x = torch.nn.Parameter(torch.tensor([1.0]))
        >>> optimizer = SAM([x], optcore.inject_hyperparams(optcore.sgd)(lr=0.1), rho=0.5)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (x**2).sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()  # the loss before the step
        1.0
        >>> x.detach(), optimizer.param_groups[0]["lr"]  # at 1.5 the gradient is 3
        (tensor([0.7000]), 0.1)

    Reference:
        Foret et al., 2021, arXiv:2010.01412, Algorithm 1.
    """

    def __init__(self, params: Any, base: GradientTransformation, rho: float = 0.05) -> None:
        who = type(self).__name__
        check_transformation(who, base)
        inside = injected(base)
        if "rho" in inside:
            raise ValueError(
                f"{who}: expected a base whose groups leave rho to {who}, got an injected one; "
                "name it in static_args of inject_hyperparams"
            )
        self._transformation, self._kept = base, {}
        torch.optim.Optimizer.__init__(self, params, {**inside, "rho": rho})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take in more parameters, with a ``rho`` of their own where the dict has it.

        Raises:
            TypeError: ``rho`` is no number; as :meth:`Optimizer.add_param_group`.
            ValueError: ``rho`` is negative; as :meth:`Optimizer.add_param_group`.
        """
        if isinstance(param_group, dict):  # torch says what else is wrong
            rho = param_group.get("rho", self.defaults["rho"])
            check_number(type(self).__name__, "rho", rho, 0.0)
        super().add_param_group(param_group)

    def functional(self, params: Tree) -> tuple[GradientTransformation, Tree]:
        """:func:`sam` in opaque mode, and the state with which functional steps go on from here.

        Args:
            params: A tree of parameters of this optimizer, which has one group.

        Returns:
            As :meth:`Optimizer.functional`; ``update`` wants ``grad_fn=``.

        Raises:
            ValueError: There are several groups, whose ascents have one norm; as
                :meth:`Optimizer.functional`.

        Example:
            >>> import optcore
            >>> w = torch.nn.Parameter(torch.tensor([1.0]))
            >>> tx, state = SAM([w], optcore.sgd(lr=0.1), rho=0.5).functional([w])
            >>> tx.update([2 * w.detach()], state, [w], grad_fn=lambda at, i: [2 * at[0]])[0]
            [tensor([-0.3000])]
        """
        who = f"{type(self).__name__}.functional"
        if len(self.param_groups) > 1:
            raise ValueError(
                f"{who}: expected one group, whose gradients have one norm, got "
                f"{len(self.param_groups)}; make optcore.sam with a tree of rho"
            )
        self._check_rho(who)
        base, state = super().functional(params)
        ascent = chain(normalize(), sgd(lr=self.param_groups[0]["rho"]))
        found = SAMState(new_count(), state, ascent.init(params), ())
        return sam(base, ascent, opaque_mode=True), found

    def _check_rho(self, who: str) -> None:
        for index, group in enumerate(listed(self)):
            check_number(who, f"rho of group {index}", group["rho"], 0.0)

    def _check_ready(self) -> None:
        self._check_rho(f"{type(self).__name__}.step")

    def _evaluated(self, closure: Callable[[], Any] | None) -> Any:
        who = f"{type(self).__name__}.step"
        check_closure(who, closure)
        loss = super()._evaluated(closure)
        climbing = [
            (param, group["rho"])
            for group in listed(self)
            for param in group["params"]
            if param.grad is not None
        ]
        for param, _ in climbing:
            check_gradient(who, param.grad)
        starts = [param.clone() for param, _ in climbing]
        try:
            _climb(climbing)
            super()._evaluated(closure)
        finally:  # whatever the closure did
            for (param, _), start in zip(climbing, starts, strict=True):
                param.copy_(start)
        return loss


def _climb(climbing: list[tuple[torch.Tensor, float]]) -> None:
    """Move parameters uphill; the directions are gone when the next forward pass wants memory."""
    grads = [param.grad for param, _ in climbing]
    directions, _ = normalize().update(grads, EmptyState(), inplace=True)
    for (param, rho), direction in zip(climbing, directions, strict=True):
        param.add_(direction, alpha=rho)


def _opaque_init(
    params: Tree,
    *,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    **_: Any,
) -> SAMState:
    return SAMState(new_count(), optimizer.init(params), adv_optimizer.init(params), ())


def _sam_init(params: Tree, **static: Any) -> SAMState:
    return _opaque_init(params, **static)._replace(cache=clones("sam", params))


def _sam_update(
    updates: Tree,
    state: SAMState,
    params: Tree,
    *,
    inplace: bool,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    **extra: Any,
) -> tuple[Tree, SAMState]:
    first, last = state.steps_since_sync == 0, state.steps_since_sync == sync_period - 1
    leaves, spec = tree_flatten(params)
    kept = flatten_like("sam", "state differs from params", spec, state.cache)
    leafwise("sam", _unchanged, updates, params=params)  # refuses before anything changes
    pairs = zip(leaves, kept, strict=True)
    cache = tree_unflatten(
        spec, [old if p is None else anchored(first, p, old, inplace) for p, old in pairs]
    )

    def down(updates: Tree, inplace: bool) -> tuple[Tree, Tree, Tree]:
        steps, opt_state = optimizer.apply(updates, state.opt_state, cache, inplace, extra)
        steps, _ = leafwise("sam", _from_start, steps, cache, params=params)
        fresh = adv_optimizer.init(params) if reset_state else state.adv_state
        return steps, opt_state, fresh

    def up() -> tuple[Tree, Tree, Tree]:
        steps, adv_state = adv_optimizer.apply(updates, state.adv_state, params, False, extra)
        return _negated(steps), state.opt_state, adv_state

    steps, opt_state, adv_state = cond("sam", last, updates, down, up, inplace)
    count = (state.steps_since_sync + 1) % sync_period
    return steps, SAMState(count, opt_state, adv_state, cache)


def _check_extra(extra: Mapping[str, Any]) -> None:
    grad_fn = extra.get("grad_fn")
    if not callable(grad_fn):
        found = "None" if grad_fn is None else describe(grad_fn)
        raise TypeError(
            f"sam: expected grad_fn= with opaque_mode=True, got {found}; call update(updates, "
            "state, params, grad_fn=lambda params, i: ...)"
        )


@declares(_check_extra, calls="optimizer")
def _opaque_update(
    updates: Tree,
    state: SAMState,
    params: Tree,
    *,
    inplace: bool,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    grad_fn: Callable[[Tree, int], Tree],
    **extra: Any,
) -> tuple[Tree, SAMState]:
    adv_state, at = state.adv_state, params
    for index in range(sync_period - 1):
        steps, adv_state = adv_optimizer.apply(updates, adv_state, at, False, extra)
        at = apply_updates(at, _negated(steps), inplace=False)
        with torch.enable_grad():
            updates = grad_fn(at, index)
    if reset_state:
        adv_state = adv_optimizer.init(params)
    updates, opt_state = optimizer.apply(updates, state.opt_state, params, inplace, extra)
    return updates, SAMState(new_count(), opt_state, adv_state, ())


def _unchanged(update: torch.Tensor, param: torch.Tensor) -> torch.Tensor:
    return update


def _from_start(update: Any, start: Any, param: Any) -> Any:
    return start - param + update, start


def _negated(updates: Tree) -> Tree:
    return tree_map(lambda u: None if u is None else -u, updates)
