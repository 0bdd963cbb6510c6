# SPDX-License-Identifier: Apache-2.0
"""Explicit, implicit and zero-order: one answer, the closed form."""

import pytest
import torch
from torch import nn

import optdiff
from optdiff import minimize, testing
from optdiff.linear_solve import solve_cg
from optdiff.nn import ImplicitMetaGradientModule

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

STEPS = 150
STEPSIZE = {"quadratic": 0.25, "ridge": 0.03}
PROBLEMS = [testing.quadratic_bilevel(), testing.ridge_regression()]


def leaves(problem):
    return tuple(arg.clone().requires_grad_() for arg in problem.args)


def step_of(problem):
    def step(x, i, *args):
        gradient = torch.func.grad(problem.objective)(x, *args)
        return x - STEPSIZE[problem.name] * gradient

    return step


def unrolled(problem, **options):
    args = leaves(problem)
    x = optdiff.unroll(step_of(problem), problem.init, STEPS, *args, **options)
    return torch.autograd.grad(problem.outer(x), args)


def checkpointed(problem):
    return unrolled(problem, checkpoint="sqrt")


def truncated(problem):
    return unrolled(problem, truncate=STEPS // 2)  # what is cut off has been forgotten


def forward(problem):
    args = problem.args
    return optdiff.forward_hypergradient(
        lambda x, *args: problem.outer(x),
        step_of(problem),
        problem.init,
        STEPS,
        *args,
        argnums=tuple(range(len(args))),
    )[1]


def by_meta_optimizer(problem):
    args = leaves(problem)
    net = nn.Module()
    net.x = nn.Parameter(problem.init.clone())
    optimizer = optdiff.MetaSGD(net, lr=STEPSIZE[problem.name])
    for _ in range(STEPS):
        optimizer.step(problem.objective(net.x, *args))
    return torch.autograd.grad(problem.outer(net.x), args)


def solved(init, problem, *args):
    return minimize.lbfgs(problem.objective, init, *args, tol=1e-12).solution


def implicit(problem, **options):
    def optimality(x, *args):
        return problem.optimality(x, *args)

    def solve(init, *args):
        return solved(init, problem, *args)

    args = leaves(problem)
    x = optdiff.custom_root(optimality, **options)(solve)(problem.init, *args)
    return torch.autograd.grad(problem.outer(x), args)


def implicit_by_cg(problem):
    return implicit(problem, solve=solve_cg(rtol=1e-13))


def implicit_fixed_point(problem):
    args = leaves(problem)
    step = step_of(problem)

    @optdiff.custom_fixed_point(lambda x, *args: step(x, 0, *args))
    def solve(init, *args):
        return solved(init, problem, *args)

    x = solve(problem.init, *args)
    return torch.autograd.grad(problem.outer(x), args)


def implicit_module(problem):
    class Inner(ImplicitMetaGradientModule):
        def __init__(self, args):
            super().__init__()
            for index, arg in enumerate(args):
                self.register_meta_parameter(f"arg{index}", arg)
            self.x = nn.Parameter(problem.init.clone())

        def objective(self):
            return problem.objective(self.x, *self.meta_parameters())

        def solve(self):
            with torch.no_grad():
                self.x.copy_(solved(self.x, problem, *self.meta_parameters()))
            return self

    args = leaves(problem)
    return torch.autograd.grad(problem.outer(Inner(args).solve().x), args)


EXACT = [
    unrolled,
    checkpointed,
    truncated,
    forward,
    by_meta_optimizer,
    implicit,
    implicit_by_cg,
    implicit_fixed_point,
    implicit_module,
]


@pytest.mark.parametrize("mode", EXACT, ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_exact_modes(problem, mode):
    found = mode(problem)
    expected = problem.hypergradient(*problem.args)
    torch.testing.assert_close(tuple(found), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("method", ["forward", "antithetic"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_zero_order(problem, method):
    """The mean of many estimates lies within four of its standard errors."""
    samples = 2000
    noise = torch.distributions.Normal(0.0, 1.0)

    everywhere = tuple(range(len(problem.args)))

    @optdiff.zero_order(noise, method, argnums=everywhere, sigma=1e-4)
    def outer(*args):
        return problem.outer(solved(problem.init, problem, *args))

    estimate = torch.vmap(torch.func.grad(outer, everywhere), randomness="different")
    estimates = estimate(*(arg.expand(samples, *arg.shape) for arg in problem.args))
    truth = problem.hypergradient(*problem.args)
    for each, true in zip(estimates, truth, strict=True):
        error = each.std(0) / samples**0.5
        assert ((each.mean(0) - true).abs() <= 4 * error).all()
        assert (error < 0.2 * torch.cat([t.reshape(-1) for t in truth]).norm()).all()
