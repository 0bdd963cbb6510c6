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


def zero_order(problem, method, **options):
    everywhere = tuple(range(len(problem.args)))

    @optdiff.zero_order(
        torch.distributions.Normal(0.0, 1.0),
        method,
        argnums=everywhere,
        sigma=1e-4,
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    def outer(*args):
        return problem.outer(solved(problem.init, problem, *args))

    args = leaves(problem)
    found = torch.autograd.grad(outer(*args), args)
    true = problem.hypergradient(*problem.args)
    return [torch.cat([part.reshape(-1) for part in each]) for each in (found, true)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("naive", {"baseline": "mean"}),
        ("forward", {}),
        ("antithetic", {}),
        ("antithetic", {"orthogonal": True}),
    ],
)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_zero_order(problem, method, options):
    """The estimate along the truth, and its error, within three times what Gaussian noise gives.

    Of a linear function with gradient g, n samples give the first a variance of 2 / n and the
    second a mean square of (d + 1) / n, relative to g: at most .042 and .074 here.
    """
    samples = 10_000
    estimate, true = zero_order(problem, method, num_samples=samples, **options)
    along = (estimate @ true) / (true @ true)
    error = (estimate - true).norm() / true.norm()
    assert abs(along - 1) < 3 * (2 / samples) ** 0.5
    assert error < 3 * ((true.numel() + 1) / samples) ** 0.5


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_finite_differences(problem):
    found, expected = zero_order(problem, "finite_difference")
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)
