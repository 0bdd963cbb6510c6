# SPDX-License-Identifier: Apache-2.0
"""Checks of derivatives: finite differences, zero gradients, forward mode, torch.func, vmap."""

from __future__ import annotations

import re
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

from optcore.testing._case import Case, reports_errors
from optcore.testing._trajectory import compare, draw, hyperparameter, leaves_at, start, summary


def _inputs(case: Case) -> list[Tensor]:
    values = [hyperparameter(case, v) for v in case.values()]
    return [x.requires_grad_() for x in (*start(case).values(), *values)]


@reports_errors
def check_gradients(case: Case, steps: int = 3) -> None:
    """First and second derivative of some steps equal finite differences.

    They are taken with respect to the parameters (along two directions of each), through every
    gradient and state, and with respect to every hyperparameter.
    """
    leaves = list(start(case).values())
    along = [draw(case, [leaf.shape] * 2, offset=1 + k) for k, leaf in enumerate(leaves)]
    moves = [hyperparameter(case, [0.0, 0.0]).requires_grad_() for _ in leaves]
    inputs = [*moves, *_inputs(case)[2:]]
    arguments = [*(f"params[{name!r}]" for name in start(case)), *case.value_names()]

    def run(*x: Tensor) -> Tensor:
        at = [p + d[0] * t[0] + d[1] * t[1] for p, d, t in zip(leaves, along, x[:2], strict=True)]
        return summary(case, at, x[2:], steps=steps, inplace=False)

    for what, check in (("first", gradcheck), ("second", gradgradcheck)):
        try:
            check(run, inputs, rtol=1e-4, atol=1e-6)
        except GradcheckError as error:
            expected = f"the {what} derivative of {steps} steps to equal finite differences"
            # torch names the argument by its number, where it is one that differs
            found = re.search(r"with respect to input (\d+)", str(error))
            where = dict(enumerate(arguments)).get(int(found[1]), "") if found else ""
            raise case.fail("check_gradients", expected, "what stands above", where) from error


@reports_errors
def check_zero_gradient(case: Case) -> None:
    """At exactly zero gradients derivatives are finite, and the first one is the limit."""
    who = "check_zero_gradient"

    def derivatives(size: float) -> tuple[Any, Any]:
        params = {name: p.requires_grad_() for name, p in start(case).items()}
        values = [hyperparameter(case, v).requires_grad_() for v in case.values()]
        z = {name: torch.full_like(p, size).requires_grad_() for name, p in params.items()}
        tx = case.build(values)
        state, total = tx.init(params), hyperparameter(case, 0.0)
        for step in range(3):
            grads = {name: x * (1.0 + step) for name, x in z.items()}
            updates, state = tx.update(grads, state, params, inplace=False)
            total = total + sum((u + 0.5 * u.square()).sum() for u in updates.values())
        inputs = [*z.values(), *params.values(), *values]
        total = total + 0 * sum(x.sum() for x in inputs)
        first = torch.autograd.grad(total, inputs, create_graph=True)
        curved = sum(x.square().sum() for x in first) + 0 * sum(x.sum() for x in inputs)
        return first, torch.autograd.grad(curved, inputs)

    first, second = derivatives(0.0)
    for order, tree in (("first", first), ("second", second)):
        for path, leaf in leaves_at(tree):
            if not leaf.isfinite().all():
                got = "NaN or infinity"
                raise case.fail(who, f"a finite {order} derivative", got, f"argument {path}")
    if case.limit_at_zero:
        near, _ = derivatives(1e-30)
        compare(case, who, first[:2], near[:2], "the first derivative at 0 and at 1e-30", 1e-6)


@reports_errors
def check_jvp(case: Case) -> None:
    """Forward mode agrees with reverse mode."""
    inputs = _inputs(case)
    tangents = [torch.linspace(-1, 2, x.numel()).reshape(x.shape).to(x) for x in inputs]
    backward = summary(case, inputs[:2], inputs[2:], inplace=False)
    rows = [
        torch.autograd.grad(out, inputs, retain_graph=True, materialize_grads=True)
        for out in backward
    ]
    expected = torch.stack(
        [sum((g * t).sum() for g, t in zip(row, tangents, strict=True)) for row in rows]
    )
    at = tuple(x.detach() for x in inputs)
    with warnings.catch_warnings():  # torch itself still scripts its forward-mode rules
        warnings.filterwarnings("ignore", ".*torch.jit", DeprecationWarning)
        _, found = torch.func.jvp(
            lambda *x: summary(case, x[:2], x[2:]), at, tuple(t.detach() for t in tangents)
        )
    compare(case, "check_jvp", found, expected, "forward and reverse mode", 1e-9, 1e-11)


@reports_errors
def check_func_grad(case: Case) -> None:
    """Without ``inplace`` given, autograd and ``torch.func.grad`` see every step."""
    who, inputs = "check_func_grad", _inputs(case)

    def run(*x: Tensor, inplace: bool | None = None) -> Tensor:
        return summary(case, x[:2], x[2:], inplace=inplace)[0]

    expected = torch.autograd.grad(run(*inputs, inplace=False), inputs, materialize_grads=True)
    default = torch.autograd.grad(run(*inputs), inputs, materialize_grads=True)
    compare(case, who, default, expected, "the default mode and inplace=False", 1e-9, 1e-11)
    found = torch.func.grad(run, argnums=tuple(range(len(inputs))))(*(x.detach() for x in inputs))
    compare(case, who, found, expected, "torch.func and autograd", 1e-9, 1e-11)


@reports_errors
def check_vmap(case: Case) -> None:
    """``vmap`` over tasks and hyperparameters equals the loop, values and derivatives."""
    who, params = "check_vmap", list(start(case).values())
    scales = hyperparameter(case, [1.0, 0.6, -0.4])
    tasks = [torch.stack([p, 0.7 * p, -1.3 * p]) for p in params]
    values = [hyperparameter(case, [v, 0.9 * v, 0.8 * v]) for v in case.values()]

    def run(scale: Any, *x: Any) -> Tensor:
        return summary(case, x[:2], x[2:], scale=scale)

    rows = [[x[i] for x in (scales, *tasks, *values)] for i in range(3)]
    found = torch.vmap(run)(scales, *tasks, *values)
    compare(case, who, found, torch.stack([run(*r) for r in rows]), "vmap and loop", 1e-9, 1e-11)
    if case.differentiable:
        slope = torch.func.grad(lambda *x: run(*x)[0], argnums=1)
        found = torch.vmap(slope)(scales, *tasks, *values)
        expected = torch.stack([slope(*row) for row in rows])
        compare(case, who, found, expected, "derivatives of vmap and loop", 1e-9, 1e-11)
