# SPDX-License-Identifier: Apache-2.0
"""custom_root and custom_fixed_point: right to second order, under every transform, on any tree."""

import collections
import functools
import re

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call

import optcore
import optdiff
import treeops
from optdiff import custom_fixed_point, custom_root, root_jvp, root_vjp, testing
from optdiff.linear_solve import (
    ConvergenceError,
    ConvergenceWarning,
    solve_bicgstab,
    solve_cg,
    solve_cholesky,
    solve_gmres,
    solve_inv,
    solve_lu,
    solve_neumann,
    solve_normal_cg,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

F64 = torch.float64
TIGHT = {"rtol": 1e-12, "on_failure": "ignore"}
CLOSED = [name for name, make in testing.PROBLEMS.items() if make().closed]


def solution_of(problem, solve=None):
    """The closed form without its derivatives, and those of the implicit function theorem."""
    wrapped = custom_root(problem.optimality, solve=solve)(lambda init, *a: problem.solution(*a))
    return functools.partial(wrapped, None)


@pytest.mark.parametrize("transform", testing.TRANSFORMS)
@pytest.mark.parametrize("name", CLOSED)
def test_derivatives(name, transform):
    problem = testing.PROBLEMS[name]()
    found = solution_of(problem)
    testing.assert_equal_under(transform, found, problem.solution, problem.args)


SOLVERS = {
    "cg": solve_cg(**TIGHT),
    "normal_cg": solve_normal_cg(**TIGHT),
    "bicgstab": solve_bicgstab(**TIGHT),
    "gmres": solve_gmres(**TIGHT),
    "neumann": solve_neumann(alpha=0.3, **TIGHT),
    "lu": solve_lu(),
    "cholesky": solve_cholesky(),
    "inv": solve_inv(),
    "given": lambda matvec, b: solve_lu()(matvec, b),
}


@pytest.mark.parametrize("transform", testing.TRANSFORMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_linear_solvers(name, transform):
    problem = testing.quadratic_bilevel(dim=3)
    found = solution_of(problem, SOLVERS[name])
    testing.assert_equal_under(transform, found, problem.solution, problem.args)


GENERAL = ["normal_cg", "bicgstab", "gmres", "neumann", "lu", "inv", "given"]


@pytest.mark.parametrize("transform", ["reverse", "forward", "reverse_reverse", "reverse_vmap"])
@pytest.mark.parametrize("name", GENERAL)
def test_coupled_leaves_and_a_jacobian_that_is_not_symmetric(name, transform):
    problem = testing.coupled_pair()
    found = solution_of(problem, SOLVERS[name])
    testing.assert_equal_under(transform, found, problem.solution, problem.args)


@pytest.mark.parametrize("name", testing.PROBLEMS)
def test_hypergradients(name):
    problem = testing.PROBLEMS[name]()
    args = [arg.clone().requires_grad_() for arg in problem.args]
    outer = problem.outer(solution_of(problem)(*args))
    grads = torch.autograd.grad(outer, args)
    expected = problem.hypergradient(*problem.args)
    torch.testing.assert_close(grads, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", testing.PROBLEMS)
def test_gradcheck_to_second_order(name):
    problem = testing.PROBLEMS[name]()
    args = tuple(arg.clone().requires_grad_() for arg in problem.args)

    def leaves(*args):
        return tuple(treeops.tree_leaves(solution_of(problem)(*args)))

    assert torch.autograd.gradcheck(leaves, args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(leaves, args, check_fwd_over_rev=True)


def newton_cube(init, a, b):
    x = torch.ones_like(a)
    for _ in range(60):
        x = x - (x**3 + b * x - a) / (3 * x**2 + b)
    return x


def cube(x, a, b):
    return x**3 + b * x - a


A, B = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.5, 1.0], dtype=F64)


def test_second_derivative_of_a_square_root():
    """Wrong in silence elsewhere: (-.0295, -.0962) for (-.0884, -.0481) of a function of it."""
    root = custom_root(lambda x, a: x**2 - a)(lambda init, a: a.sqrt())
    a = torch.tensor(2.0, requires_grad=True)
    (first,) = torch.autograd.grad(root(None, a), a, create_graph=True)
    (second,) = torch.autograd.grad(first, a, create_graph=True)
    (third,) = torch.autograd.grad(second, a)
    expected = (0.5 * 2**-0.5, -0.25 * 2**-1.5, 0.375 * 2**-2.5)
    torch.testing.assert_close((first.item(), second.item(), third.item()), expected)


def test_zero_dimensions_by_cg():
    """A limit of 10 * sum(dims) iterations is none, and the gradient 0."""
    root = custom_root(lambda x, a: 2 * x - a**2, solve=solve_cg())(lambda init, a: a**2 / 2)
    a = torch.tensor(6.0, requires_grad=True)
    assert torch.autograd.grad(root(None, a), a)[0].item() == pytest.approx(6.0)


Pair = collections.namedtuple("Pair", ["u", "v"])
CONTAINERS = {
    "dict": lambda u, v: {"u": u, "v": v},
    "list": lambda u, v: [u, v],
    "tuple": lambda u, v: (u, v),
    "namedtuple": Pair,
    "nested": lambda u, v: {"u": [u], "v": {"w": (v, None)}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_any_tree_in_and_out(name):
    build = CONTAINERS[name]

    def optimality(x, theta):
        (u, v), (a, b) = treeops.tree_leaves(x), treeops.tree_leaves(theta)
        return build(2 * u + v - a, 3 * v - u - b)

    @custom_root(optimality)
    def solve(init, theta):
        assert type(init) is type(theta)
        a, b = treeops.tree_leaves(theta)
        return build((3 * a - b) / 7, (a + 2 * b) / 7)

    a, b = (value.clone().requires_grad_() for value in (A, B))
    x = solve(build(A, B), build(a, b))
    assert type(x) is type(build(a, b))
    u, v = treeops.tree_leaves(x)
    grads = torch.autograd.grad((u * u).sum() + v.sum(), (a, b))
    expected = (6 * u.detach() / 7 + 1 / 7, -2 * u.detach() / 7 + 2 / 7)
    torch.testing.assert_close(grads, expected)


def test_keywords_aux_and_what_is_no_tensor():
    @custom_root(lambda x, a, *, power, table: x**power - a * table["s"], has_aux=True)
    def solve(init, a, *, power, table):
        x = (a * table["s"]) ** (1 / power)
        return x, {"steps": 7, "trace": [x * 1, torch.tensor(3)]}

    a, s = (torch.tensor(value, requires_grad=True) for value in (2.0, 3.0))
    x, aux = solve(None, a, power=3, table={"s": s, "note": "kept"})
    grads = torch.autograd.grad(x, (a, s))
    torch.testing.assert_close(grads, (x.detach() / 6, x.detach() / 9))
    assert aux["steps"] == 7
    assert aux["trace"][1].item() == 3
    assert not aux["trace"][0].requires_grad
    table = {"s": s.detach()}
    traces = torch.vmap(lambda a: solve(None, a, power=3, table=table)[1]["trace"])(A)
    assert traces[0].shape == (2,)


def test_argnums_count_the_solvers_signature():
    def grads(argnums, call):
        a, b = (value.clone().requires_grad_() for value in (A, B))
        x = call(custom_root(cube, argnums)(newton_cube), a, b)
        return torch.autograd.grad(x.sum(), (a, b), allow_unused=True)

    by_position = grads(None, lambda solve, a, b: solve(None, a, b))
    calls = [
        lambda solve, a, b: solve(None, a, b),
        lambda solve, a, b: solve(None, a, b=b),
        lambda solve, a, b: solve(None, b=b, a=a),
        lambda solve, a, b: solve(init=None, b=b, a=a),
    ]
    for call in calls:
        torch.testing.assert_close(grads((1, 2), call), by_position)
        first, none = grads(1, call)
        torch.testing.assert_close(first, by_position[0])
        assert none is None
        none, second = grads((2,), call)
        assert none is None
        torch.testing.assert_close(second, by_position[1])


def test_the_initial_guess_carries_no_gradient_even_if_it_is_an_argument():
    root = custom_root(lambda x, a: x**2 - a)(lambda init, a: init * 0 + a.sqrt())
    a = torch.tensor(4.0, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(root(a, a), a)[0], torch.tensor(0.25))
    start = torch.tensor(1.0, requires_grad=True)
    assert torch.autograd.grad(root(start, a), start, allow_unused=True)[0] is None


def test_a_solver_may_return_its_guess_and_integers_may_be_arguments():
    index = torch.tensor([1, 0])
    root = custom_root(lambda x, a, i: x - a[i])(lambda init, a, i: init)
    a = A.clone().requires_grad_()
    x = root(A[index], a, index)
    torch.testing.assert_close(torch.autograd.grad(x, a, B)[0], B[index])
    both = torch.vmap(lambda i: root(A[i], a, i))(torch.stack([index, index.flip(0)]))
    torch.testing.assert_close(torch.autograd.grad(both.sum(), a)[0], torch.tensor([2.0, 2.0]))


def least_squares(w, x, y, decay):
    return 0.5 * (x @ w - y).square().sum() + 0.5 * decay.exp() * w.square().sum()


def by_autograd_grad(w, x, y, decay):
    return torch.autograd.grad(least_squares(w, x, y, decay), w, create_graph=True)[0]


def solve_by_torch_optim(init, x, y, decay):
    """What people write: leaves that require grad, backward, steps in place."""
    w = init.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([w], max_iter=100, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = least_squares(w, x, y, decay)
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach()


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
Y = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=F64)
START = torch.zeros(2, dtype=F64)


@pytest.mark.parametrize("optimality", [by_autograd_grad, torch.func.grad(least_squares)])
def test_a_solver_that_uses_autograd_works_under_torch_func(optimality):
    solve = custom_root(optimality, solve=solve_cg())(solve_by_torch_optim)

    def expected(decay):
        return torch.linalg.inv(X.mT @ X + decay.exp() * torch.eye(2)) @ X.mT @ Y

    for name in ("reverse", "forward", "forward_reverse", "reverse_forward"):
        args = (torch.tensor(0.3),)
        testing.assert_equal_under(name, lambda d: solve(START, X, Y, d), expected, args)


class Decay(nn.Module):
    def __init__(self):
        super().__init__()
        self.log = nn.Parameter(torch.tensor([0.1, 0.2]))
        self.tied = self.log
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, w):
        return (self.scale * (self.log.exp() + self.tied.exp()) * w.square()).sum()


def test_parameters_of_a_module_argument_get_gradients():
    def objective(w, module):
        return 0.5 * (X @ w - Y).square().sum() + module(w)

    @custom_root(torch.func.grad(objective))
    def solve(init, module):
        assert not module.log.requires_grad
        matrix = X.mT @ X + torch.diag(8 * module.log.exp())
        return torch.linalg.solve(matrix, X.mT @ Y)

    module = Decay()
    w = solve(None, module)
    (grad,) = torch.autograd.grad(w.sum(), module.log)
    inverse = torch.linalg.inv(X.mT @ X + torch.diag(8 * module.log.detach().exp()))
    expected = -inverse.sum(0) * 8 * module.log.detach().exp() * w.detach()
    torch.testing.assert_close(grad, expected)
    assert isinstance(module.log, nn.Parameter)


def test_functions_that_close_over_what_vmap_has_batched():
    def one(a, b):
        held = b.detach()
        solve = custom_root(lambda x, a: cube(x, a, held))(lambda i, a: newton_cube(i, a, held))
        return solve(None, a)

    def expected(a, b):
        return solution_of_cube(a, b.detach())

    def solution_of_cube(a, b):
        return newton_cube(None, a, b)

    testing.assert_equal_under("reverse_vmap", one, expected, (A, B))


def test_a_network_closed_over_and_called_functionally():
    net = nn.Linear(2, 1)
    params = {name: value.detach() for name, value in net.named_parameters()}

    def objective(params, decay):
        fit = (functional_call(net, params, (X,))[:, 0] - Y).square().mean()
        return fit + decay * sum(p.square().sum() for p in params.values())

    @custom_root(torch.func.grad(objective), solve=solve_cg())
    def solve(params, decay):
        return optdiff.minimize.newton(objective, params, decay).solution

    decay = torch.tensor(0.1, requires_grad=True)
    best = solve(params, decay)
    assert torch.autograd.grad(best["weight"].sum(), decay)[0].abs() > 0


@pytest.mark.parametrize("transform", testing.TRANSFORMS)
def test_fixed_points(transform):
    matrix = torch.tensor([[0.2, -0.4], [0.3, 0.1]])

    @custom_fixed_point(lambda x, a, b: torch.tanh(matrix @ x + a) * b)
    def solve(init, a, b):
        return optdiff.fixed_point.anderson(
            lambda x: torch.tanh(matrix @ x + a) * b, torch.zeros(2), tol=1e-13, on_failure="ignore"
        ).solution

    def unrolled(a, b):
        x = torch.zeros(2)
        for _ in range(60):
            x = torch.tanh(matrix @ x + a) * b
        return x

    args = (A, B)
    testing.assert_equal_under(transform, lambda a, b: solve(None, a, b), unrolled, args)


def test_gradcheck_of_a_fixed_point():
    step = functools.partial(torch.lerp, weight=torch.tensor(0.5))

    @custom_fixed_point(lambda x, a: step(x, (a / x**2)))
    def cube_root(init, a):
        return a ** (1 / 3)

    args = (A.clone().requires_grad_(),)
    solve = functools.partial(cube_root, None)
    assert torch.autograd.gradcheck(solve, args, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(solve, args, check_fwd_over_rev=True)


TO_A_FIXED_POINT = {
    "neumann": (solve_neumann(), 2.0),
    "neumann_truncated": (solve_neumann(maxiter=3, on_failure="ignore"), 1.75),
    "ridge": (solve_cg(ridge=0.1), 1 / 0.6),
    "cholesky": (solve_cholesky(on_failure="raise"), 2.0),
}


@pytest.mark.parametrize("name", TO_A_FIXED_POINT)
def test_the_matrix_of_a_fixed_point_is_positive_definite_for_a_contraction(name):
    """It is I - T': of x = x / 2 + a the half, whose Neumann series converges."""
    solver, expected = TO_A_FIXED_POINT[name]
    solve = custom_fixed_point(lambda x, a: 0.5 * x + a, solve=solver)(lambda init, a: 2 * a)
    one, exact = torch.tensor(1.0), torch.tensor(expected)
    torch.testing.assert_close(torch.func.jacrev(solve, 1)(None, one), exact)
    torch.testing.assert_close(torch.func.jacfwd(solve, 1)(None, one), exact)


@pytest.mark.parametrize(
    "solve",
    [solve_cg, functools.partial(solve_cg, maxiter=5), functools.partial(solve_cg(), maxiter=5)],
)
def test_a_solver_without_its_parentheses(solve):
    root = custom_root(lambda x, a: x**2 - a, solve=solve)(lambda init, a: a.sqrt())
    assert torch.func.grad(root, 1)(None, torch.tensor(4.0)) == 0.25


def test_an_implicit_function_inside_the_optimality_of_another():
    """The inner one is differentiated by the outer's linear solves, long after its own level."""
    inner = custom_root(lambda x, a: x**3 - a)(lambda init, a: a ** (1 / 3))

    @custom_root(lambda y, a: y - inner(None, y * a))  # y^3 = y a, so y^2 = a
    def outer(init, a):
        return a.sqrt()

    for name in ("reverse", "forward", "reverse_reverse", "forward_reverse", "reverse_vmap"):
        testing.assert_equal_under(name, functools.partial(outer, None), torch.sqrt, (A,))


def test_forward_mode_without_torch_func():
    root = custom_root(lambda x, a: x**2 - a)(lambda init, a: a.sqrt())
    with forward_ad.dual_level():
        dual = root(None, forward_ad.make_dual(torch.tensor(4.0), torch.tensor(2.0)))
        assert forward_ad.unpack_dual(dual).tangent.item() == pytest.approx(0.5)


def test_root_vjp_is_differentiable():
    x = newton_cube(None, A, B)
    args = (A.clone().requires_grad_(), B.clone().requires_grad_(), x.clone().requires_grad_())

    def pulled(a, b, x):
        return root_vjp(cube, x, (a, b), x)

    assert torch.autograd.gradcheck(pulled, args)


def test_root_vjp_and_root_jvp():
    problem = testing.coupled_pair()
    x = problem.solution(*problem.args)
    _, pull = torch.func.vjp(problem.solution, *problem.args)
    grads = root_vjp(problem.optimality, x, problem.args, x)
    torch.testing.assert_close(grads, pull(x))
    moved = root_jvp(problem.optimality, x, problem.args, problem.args)
    expected = torch.func.jvp(problem.solution, problem.args, problem.args)[1]
    torch.testing.assert_close(moved, expected)
    still = root_jvp(problem.optimality, x, problem.args, (problem.args[0], None))
    zero = torch.zeros(2)
    expected = torch.func.jvp(problem.solution, problem.args, (problem.args[0], zero))[1]
    torch.testing.assert_close(still, expected)
    assert root_vjp(lambda x, n: n * x - 1, torch.tensor(0.5), (2,), torch.tensor(1.0)) == (None,)


def test_listing_of_the_documentation():
    """The functional listing that users know, with the package's name changed."""

    def stationary(params, meta_params, data):
        loss = least_squares(params, data[0], data[1], meta_params)
        return torch.autograd.grad(loss, params, create_graph=True)[0]

    @optdiff.custom_root(stationary, solve=solve_cg())
    def solve(params, meta_params, data):
        optimizer = optcore.sgd(lr=0.05)
        state = optimizer.init(params)
        for _ in range(400):
            grads = stationary(params.detach().requires_grad_(), meta_params, data).detach()
            updates, state = optimizer.update(grads, state, inplace=False)
            params = optcore.apply_updates(params, updates, inplace=False)
        return params

    meta_params = torch.tensor(0.3, requires_grad=True)
    optimal_params = solve(START, meta_params, (X, Y))
    loss = optimal_params.square().sum()
    (meta_grads,) = torch.autograd.grad(loss, meta_params)
    inverse = torch.linalg.inv(X.mT @ X + torch.tensor(0.3).exp() * torch.eye(2))
    w = inverse @ X.mT @ Y
    torch.testing.assert_close(meta_grads, -2 * torch.tensor(0.3).exp() * (w @ inverse @ w))


def test_a_linear_solver_that_fails_warns_or_raises():
    def hypergradient(solve):
        root = custom_root(lambda x, a: SINGULAR @ x - a, solve=solve)(lambda init, a: a.clone())
        a = torch.ones(2, requires_grad=True)
        return torch.autograd.grad(root(None, a).sum(), a)[0]

    with pytest.warns(ConvergenceWarning, match="solve_gmres: expected a residual norm"):
        hypergradient(None)
    with pytest.raises(ConvergenceError, match="solve_cg: expected a residual norm"):
        hypergradient(solve_cg(on_failure="raise"))


SINGULAR = torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=F64)
CLOSED_OVER = torch.tensor(2.0, dtype=F64, requires_grad=True)
TWO = torch.tensor(2.0, dtype=F64)


def through(optimality, solve=lambda init, a: a.sqrt(), has_aux=False):
    return custom_root(optimality, has_aux=has_aux)(solve)(None, TWO.clone().requires_grad_())


TWO_VALUES = torch.tensor([4.0, 9.0], dtype=F64)
two_roots = functools.partial(custom_root(lambda x, a: x**2 - a)(lambda i, a: a.sqrt()), None)


def root_of_two():
    a = TWO_VALUES.clone().requires_grad_()
    return two_roots(a), a


def no_derivative_in_the_solution(x, a):
    return torch.autograd.grad(x * (x**2 - a).detach(), x)[0]


Named = collections.namedtuple("Named", ["first", "second"])


def under_forward_mode():
    def f(theta):
        return custom_root(lambda x, a: x**2 - a * theta)(lambda i, a: a.sqrt())(None, TWO)

    return torch.func.jvp(f, (TWO,), (TWO,))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2, dtype=F64)

    def optimality(self, x, a):
        return self.inner(x) - a


def slope_by(solve):
    """The slope of a square root, by a linear solver."""
    root = custom_root(lambda x, a: x**2 - a, solve=solve)(lambda init, a: a.sqrt())
    return torch.func.grad(lambda a: root(None, a))(TWO)


REFUSED = [
    (
        lambda: custom_root(cube, 0),
        ValueError,
        "custom_root: expected argnums from 1 on, got 0; argument 0 is the initial guess",
    ),
    (lambda: custom_root(cube, ()), ValueError, "custom_root: expected argnums from 1 on, got ()"),
    (lambda: custom_root(3), TypeError, "custom_root: expected a callable optimality_fn, got int"),
    (
        lambda: custom_root(cube, solve=3),
        TypeError,
        "custom_root: expected solve to be a linear solver such as optdiff.linear_solve.solve_cg()",
    ),
    (
        lambda: custom_root(cube, solve=lambda: solve_lu()),
        TypeError,
        "custom_root: expected solve to be a function solve(matvec, b), matvec a function of trees "
        "like b, got <lambda>, which cannot be called so; pass a linear solver such as",
    ),
    (
        lambda: slope_by(torch.linalg.solve),
        TypeError,
        "custom_root: expected solve to be a function solve(matvec, b), matvec a function of trees "
        "like b, got linalg_solve, which cannot be called so; pass a linear solver such as",
    ),
    (
        lambda: custom_root(cube, 3)(newton_cube)(None, A, B),
        ValueError,
        "custom_root: expected argnums below the 3 arguments, got 3; they count the solver's",
    ),
    (
        lambda: custom_root(cube)(newton_cube)(a=A, b=B),
        TypeError,
        "custom_root: expected the initial guess as the first argument, got none; give None",
    ),
    (
        lambda: through(lambda x, a: x**2 - a * CLOSED_OVER),
        ValueError,
        "custom_root: expected an optimality that gets every tensor that requires grad as an "
        "argument, got one that closes over such a tensor, f64[] at CLOSED_OVER, which would get "
        "no gradient; pass it as an argument, or detach it",
    ),
    (
        lambda: custom_root(Layer().optimality)(lambda init, a: a.sqrt())(None, TWO_VALUES),
        ValueError,
        "closes over such a tensor, f64[2] at self.inner.bias, which would get no gradient; pass "
        "self (the module) as an argument, or detach it",
    ),
    (
        lambda: through(torch.func.grad(lambda x, a: x**3 / 3 - CLOSED_OVER * x)),
        ValueError,
        "closes over such a tensor, f64[] at CLOSED_OVER, which would get no gradient; pass it as",
    ),
    (
        under_forward_mode,
        ValueError,
        "custom_root: expected an optimality that gets every tensor that requires grad as an",
    ),
    (
        lambda: torch.func.grad(
            lambda t: custom_root(lambda x, a: x**2 - a * t)(lambda i, a: a.sqrt())(None, TWO)
        )(TWO),
        ValueError,
        "custom_root: expected an optimality that gets every tensor that requires grad as an",
    ),
    (
        lambda: custom_root(lambda x, a: x - a.real)(lambda i, a: a.real.clone())(
            None, torch.ones(2, dtype=torch.complex128, requires_grad=True)
        ),
        TypeError,
        "implicit differentiation: expected real floating tensors to differentiate in, got a",
    ),
    (
        lambda: through(no_derivative_in_the_solution),
        ValueError,
        "custom_root: expected an optimality that depends on the solution, got one without a",
    ),
    (
        lambda: through(lambda x, a: [x**2 - a]),
        ValueError,
        "custom_root: expected the optimality to have the structure PyTreeSpec(*",
    ),
    (
        lambda: through(lambda x, a: (x**2 - a)[None]),
        ValueError,
        "custom_root: expected the optimality to have the shape [], got f64[1]",
    ),
    (
        lambda: through(lambda x, a: x, lambda init, a: {"x": [1]}),
        TypeError,
        "custom_root: expected the solution to hold real floating tensors, got int, at ['x'][0]",
    ),
    (
        lambda: through(lambda x, a: x, lambda init, a: Named(a, 1)),
        TypeError,
        "custom_root: expected the solution to hold real floating tensors, got int, at .second",
    ),
    (
        lambda: through(
            lambda x, a: x**2 - a,
            lambda init, a: optdiff.root.newton(lambda x, a: x**2 - a, a, a),
        ),
        TypeError,
        "custom_root: expected the solver to return the solution, got a SolverResult; return "
        "result.solution",
    ),
    *[
        (
            call,
            RuntimeError,
            "implicit differentiation: expected one derivative at a time or a batch of torch.vmap, "
            "got a batch of torch.autograd (is_grads_batched=True, vectorize=True or "
            "check_batched_grad=True); use torch.func.jacrev, jacfwd or hessian",
        )
        for call in (
            lambda: torch.autograd.grad(*root_of_two(), torch.eye(2), is_grads_batched=True),
            lambda: torch.autograd.functional.jacobian(two_roots, TWO_VALUES, vectorize=True),
            lambda: torch.autograd.functional.jacobian(
                two_roots, TWO_VALUES, vectorize=True, strategy="forward-mode"
            ),
        )
    ],
    (
        lambda: torch.func.linearize(
            lambda a: optdiff.fixed_point.fixed_point_iteration(lambda x: x / 2 + a, a).solution,
            TWO_VALUES,
        ),
        RuntimeError,
        "fixed_point_iteration: expected tensors with values, by which it stops, got those of a",
    ),
    (
        lambda: torch.func.linearize(two_roots, TWO_VALUES),
        RuntimeError,
        "solve_gmres: expected tensors with values, by which it stops, got those of a tracer "
        "(torch.func.linearize, make_fx), which have none; use torch.func.jvp or vjp",
    ),
    (
        lambda: through(lambda x, a: x, has_aux=True),
        TypeError,
        "custom_root: expected the solver to return (solution, aux), got Tensor",
    ),
    (
        lambda: custom_fixed_point(lambda x, a: [x])(lambda init, a: a)(None, A),
        ValueError,
        "custom_fixed_point: expected the fixed point's image to have the structure PyTreeSpec(*",
    ),
    (
        lambda: root_vjp(cube, A, (A, B), [A]),
        ValueError,
        "root_vjp: expected the cotangent to have the structure PyTreeSpec(*",
    ),
    (
        lambda: root_jvp(cube, A, (A, B), (A,)),
        ValueError,
        "root_jvp: tangents differ from args: ",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_type_error_inside_a_given_linear_solver_is_its_own():
    with pytest.raises(TypeError, match="unsupported operand"):
        slope_by(lambda matvec, b: b + None)
