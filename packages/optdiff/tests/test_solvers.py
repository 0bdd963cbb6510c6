# SPDX-License-Identifier: Apache-2.0
"""Solvers of fixed points, roots and minima: values, records, batches, failures."""

import math
import re

import pytest
import torch

import treeops
from optdiff import fixed_point, minimize, root, testing
from optdiff.linear_solve import (
    ConvergenceError,
    ConvergenceWarning,
    solve_cholesky,
    solve_gmres,
    solve_lu,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

MATRIX = torch.tensor([[0.2, -0.4], [0.3, 0.1]], dtype=torch.float64)
SHIFTS = torch.tensor([[1.0, 2.0], [-3.0, 0.1], [0.0, 0.0]], dtype=torch.float64)


def layer(x, shift):
    return {"z": torch.tanh(MATRIX @ x["z"] + shift)}


def as_root(x, shift):
    return {"z": layer(x, shift)["z"] - x["z"]}


FIXED_POINTS = {
    "iteration": lambda f, *a, **o: fixed_point.fixed_point_iteration(f, *a, **o),
    "damped": lambda f, *a, **o: fixed_point.fixed_point_iteration(f, *a, damping=0.3, **o),
    "anderson": fixed_point.anderson,
    "anderson_mixing": lambda f, *a, **o: fixed_point.anderson(f, *a, mixing=0.7, history=2, **o),
    "broyden": fixed_point.broyden,
    "broyden_short": lambda f, *a, **o: fixed_point.broyden(f, *a, history=2, **o),
    "newton": lambda f, *a, **o: root.newton(as_root, *a, **o),
    "newton_lu": lambda f, *a, **o: root.newton(as_root, *a, solve=solve_lu(), **o),
}


@pytest.mark.parametrize("name", FIXED_POINTS)
def test_fixed_points_alone_and_in_a_batch(name):
    def solve(shift):
        return FIXED_POINTS[name](layer, {"z": torch.zeros(2)}, shift, tol=1e-13)

    alone = [solve(shift) for shift in SHIFTS]
    for result, shift in zip(alone, SHIFTS, strict=True):
        image = layer(result.solution, shift)
        torch.testing.assert_close(result.solution, image, rtol=0, atol=1e-12)
        assert result.converged
    assert alone[2].iterations == 0
    batch = torch.vmap(solve)(SHIFTS)
    assert batch.iterations.tolist() == [result.iterations.item() for result in alone]
    assert batch.converged.all()
    for index, result in enumerate(alone):
        torch.testing.assert_close(batch.solution["z"][index], result.solution["z"])


def test_acceleration_saves_iterations():
    slow = 0.98 * torch.linalg.qr(torch.randn(6, 6))[0]
    shift = torch.randn(6)

    def step(x):
        return slow @ x + shift

    plain = fixed_point.fixed_point_iteration(step, torch.zeros(6), maxiter=5000)
    for solve in (fixed_point.anderson, fixed_point.broyden):
        fast = solve(step, torch.zeros(6), history=10)
        assert fast.iterations < plain.iterations / 10
        torch.testing.assert_close(fast.solution, plain.solution, rtol=0, atol=1e-6)


def test_a_constant_step():
    result = minimize.gradient_descent(square, torch.ones(2), stepsize=0.25, tol=1e-9)
    assert result.iterations == 30  # the gradient halves each time
    assert result.converged


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 10 * (x[1] - x[0] ** 2) ** 2


MINIMIZERS = {
    "gradient_descent": minimize.gradient_descent,
    "accelerated": lambda f, *a, **o: minimize.gradient_descent(f, *a, acceleration=True, **o),
    "proximal": lambda f, *a, **o: minimize.proximal_gradient(f, *a, prox=lambda x, t: x, **o),
    "newton": minimize.newton,
    "lbfgs": minimize.lbfgs,
    "lbfgs_short": lambda f, *a, **o: minimize.lbfgs(f, *a, history=2, **o),
    "newton_direct": lambda f, *a, **o: minimize.newton(f, *a, solve=solve_cholesky(), **o),
}


@pytest.mark.parametrize("name", MINIMIZERS)
@pytest.mark.parametrize("problem", ["quadratic", "ridge", "logistic"])
def test_minima(name, problem):
    problem = testing.PROBLEMS[problem]()
    result = MINIMIZERS[name](problem.objective, problem.init, *problem.args, tol=1e-9)
    assert result.converged
    expected = problem.solution(*problem.args)
    torch.testing.assert_close(result.solution, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["accelerated", "proximal", "newton", "lbfgs"])
def test_minima_of_a_curved_valley_alone_and_in_a_batch(name):
    starts = torch.tensor([[-1.0, 1.0], [1.0, 1.0], [2.0, -1.0]])

    def solve(start):
        return MINIMIZERS[name](rosenbrock, start, tol=1e-10, maxiter=5000)

    alone = [solve(start) for start in starts]
    batch = torch.vmap(solve)(starts)
    assert batch.iterations.tolist() == [result.iterations.item() for result in alone]
    torch.testing.assert_close(batch.solution, torch.ones(3, 2), rtol=0, atol=1e-6)


def test_a_term_known_by_its_proximal_operator():
    """The lasso's optimality: the gradient is the subgradient of the norm."""
    design, targets = torch.randn(20, 8), torch.randn(20)

    def smooth(w):
        return 0.5 * (design @ w["w"] - targets).square().sum()

    def shrink(x, stepsize):
        return {"w": x["w"].sign() * (x["w"].abs() - 2.0 * stepsize).clamp(min=0)}

    result = minimize.proximal_gradient(smooth, {"w": torch.zeros(8)}, prox=shrink)
    w = result.solution["w"]
    g = torch.func.grad(smooth)(result.solution)["w"]
    zero = w == 0
    assert 0 < int(zero.sum()) < 8
    torch.testing.assert_close(g[~zero], -2.0 * w.sign()[~zero], rtol=0, atol=1e-7)
    assert (g[zero].abs() <= 2.0).all()


def test_a_solution_stays_inside_what_the_projection_allows():
    result = minimize.proximal_gradient(
        lambda x: (x - torch.tensor([2.0, 0.5])).square().sum(),
        torch.zeros(2),
        prox=lambda x, t: x.clamp(0, 1),
        maxiter=3,
        on_failure="ignore",
    )
    assert (result.solution <= 1).all()


def test_results_carry_no_graph():
    shift = SHIFTS[0].clone().requires_grad_()
    for solve in FIXED_POINTS.values():
        leaves = treeops.tree_leaves(solve(layer, {"z": torch.zeros(2)}, shift))
        assert not any(leaf.requires_grad for leaf in leaves)
    for solve in MINIMIZERS.values():
        result = solve(lambda x, s: (x - s).square().sum(), torch.zeros(2), shift)
        assert not result.solution.requires_grad


def test_newton_gets_out_of_a_concave_start():
    result = minimize.newton(lambda x: x.cos().sum(), torch.tensor([0.1]))
    torch.testing.assert_close(result.solution.cos(), torch.tensor([-1.0]))


def shifted(x, a):
    return {"u": x["u"] ** 3 + x["u"] - a, "v": 2 * x["v"] - a.sum()}


def energy(x, a):
    return sum((part.cosh() - a.sum() * part).sum() for part in x.values())


OPTIONS_OF_TREES = {
    "M": lambda start: solve_gmres(M=lambda x: {name: part / 2 for name, part in x.items()}),
    "init": lambda start: solve_gmres(init=start),
    "info": lambda start: solve_gmres(return_info=True),
    "function": lambda start: lambda matvec, b: solve_gmres()(matvec, b),
    "without parentheses": lambda start: solve_gmres,
}


@pytest.mark.parametrize("option", OPTIONS_OF_TREES)
@pytest.mark.parametrize(("newton", "problem"), [(root.newton, shifted), (minimize.newton, energy)])
def test_newtons_linear_solver_knows_the_unknowns_as_trees(newton, problem, option):
    start = {"u": torch.full((2,), 0.1), "v": torch.full((1, 1), 0.2)}
    a = torch.tensor([1.0, 2.0])
    plain = newton(problem, start, a)
    found = newton(problem, start, a, solve=OPTIONS_OF_TREES[option](start))
    assert found.converged
    torch.testing.assert_close(found.solution, plain.solution)


def test_a_line_search_saves_newton():
    """Full steps overshoot from here."""
    start = torch.tensor(2.0)
    assert root.newton(torch.atan, start).converged
    with pytest.warns(ConvergenceWarning, match="newton: expected a residual"):
        root.newton(torch.atan, start, max_halvings=0, maxiter=6)


def test_failure():
    message = "fixed_point_iteration: expected a residual <= 3.67e-11 max(1, |x|) within 2 iteratio"
    with pytest.warns(ConvergenceWarning, match=re.escape(message)):
        fixed_point.fixed_point_iteration(torch.cos, torch.tensor(1.0), maxiter=2)
    with pytest.raises(ConvergenceError, match=re.escape(message)):
        fixed_point.fixed_point_iteration(
            torch.cos, torch.tensor(1.0), maxiter=2, on_failure="raise"
        )
    result = fixed_point.fixed_point_iteration(
        lambda x: 3 * x, torch.ones(1) * 1e300, maxiter=50, on_failure="ignore"
    )
    assert not result.converged
    assert result.iterations < 50


def square(x):
    return (x * x).sum()


ONE = torch.ones(2, dtype=torch.float64)

REFUSED = [
    (
        lambda: fixed_point.anderson(torch.cos, 3),
        TypeError,
        "anderson: expected init to hold real floating tensors, got int",
    ),
    (
        lambda: fixed_point.anderson(torch.cos, ONE, history=0),
        ValueError,
        "anderson: expected history >= 1, got 0",
    ),
    (
        lambda: fixed_point.anderson(torch.cos, ONE, history=2.5),
        ValueError,
        "anderson: expected history >= 1, got 2.5; give an integer",
    ),
    (
        lambda: fixed_point.anderson(torch.cos, ONE, mixing=math.nan),
        ValueError,
        "anderson: expected mixing > 0, got nan; give a finite number",
    ),
    (
        lambda: fixed_point.anderson(torch.cos, ONE, tol=torch.tensor(1e-3)),
        ValueError,
        "anderson: expected tol >= 0, got Tensor; give a finite number",
    ),
    *[
        (
            lambda solve=solve: solve(square, ONE, max_halvings=-1),
            ValueError,
            f"{name}: expected max_halvings >= 0, got -1; give an integer",
        )
        for name, solve in {
            "root.newton": root.newton,
            "minimize.newton": minimize.newton,
            "lbfgs": minimize.lbfgs,
        }.items()
    ],
    (
        lambda: minimize.newton(square, ONE, solve=3),
        TypeError,
        "minimize.newton: expected solve to be a linear solver such as",
    ),
    (
        lambda: fixed_point.broyden(torch.cos, ONE, history=0),
        ValueError,
        "broyden: expected history >= 1, got 0",
    ),
    (
        lambda: fixed_point.broyden(torch.sum, ONE),
        ValueError,
        "broyden: expected the image to have the shape [2], got f64[]",
    ),
    (
        lambda: fixed_point.fixed_point_iteration(torch.cos, ONE, damping=1.0),
        ValueError,
        "fixed_point_iteration: expected damping in [0, 1), got 1.0",
    ),
    (
        lambda: minimize.lbfgs(square, ONE, history=0),
        ValueError,
        "lbfgs: expected history >= 1, got 0",
    ),
    (
        lambda: root.newton(square, ONE, tol=-1.0),
        ValueError,
        "root.newton: expected tol >= 0, got -1.0",
    ),
    (
        lambda: root.newton(square, ONE, maxiter=0),
        ValueError,
        "root.newton: expected maxiter >= 1, got 0",
    ),
    (
        lambda: minimize.newton(square, ONE, on_failure="x"),
        ValueError,
        "minimize.newton: expected on_failure='warn', 'raise' or 'ignore', got 'x'",
    ),
    (
        lambda: minimize.gradient_descent(torch.cos, ONE),
        ValueError,
        "gradient_descent: expected a scalar objective, got [2]",
    ),
    (
        lambda: minimize.gradient_descent(lambda x: 1.0, ONE),
        ValueError,
        "gradient_descent: expected a scalar objective, got float",
    ),
    (
        lambda: minimize.gradient_descent(square, ONE, stepsize=0.0),
        ValueError,
        "gradient_descent: expected stepsize > 0, got 0.0",
    ),
    (
        lambda: minimize.proximal_gradient(square, ONE, prox=lambda x, t: x[:1]),
        ValueError,
        "proximal_gradient: expected the image of prox to have the shape [2], got f64[1]",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
