# SPDX-License-Identifier: Apache-2.0
"""Linear solvers: values, derivatives by the rule of a linear solve, options, failures."""

import functools
import math
import pickle
import re

import pytest
import torch
from torch import nn

import treeops
from optdiff import linalg, linear_solve, testing
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
SYMMETRIC = torch.tensor([[3.0, 1.0, 0.2], [1.0, 4.0, -0.5], [0.2, -0.5, 2.0]], dtype=F64)
GENERAL = torch.tensor([[3.0, 1.5, 0.2], [-1.0, 4.0, -0.5], [0.7, 0.5, 2.0]], dtype=F64)
SKEW = torch.tensor([[0.1, 2.0, 0.0], [-2.0, 0.1, 1.0], [0.0, -1.0, 0.1]], dtype=F64)
RIGHT = torch.tensor([1.0, -2.0, 0.5], dtype=F64)

TIGHT = {"rtol": 1e-13, "on_failure": "ignore"}  # as far as rounding lets them go
SOLVERS = {
    "cg": (solve_cg(**TIGHT), SYMMETRIC),
    "normal_cg": (solve_normal_cg(**TIGHT), GENERAL),
    "bicgstab": (solve_bicgstab(**TIGHT), GENERAL),
    "gmres": (solve_gmres(**TIGHT), SKEW),
    "gmres_restarted": (solve_gmres(restart=2, maxiter=200, **TIGHT), GENERAL),
    "neumann": (solve_neumann(alpha=0.2, **TIGHT), GENERAL),
    "lu": (solve_lu(), SKEW),
    "cholesky": (solve_cholesky(), SYMMETRIC),
    "inv": (solve_inv(), SKEW),
}
BY_MATRIX = {name: solver for name, (solver, _) in SOLVERS.items()}


def keep_symmetric(solver, matrix):
    """What a solver for symmetric operators sees of a matrix that moves in every direction."""
    return (matrix + matrix.mT) / 2 if solver.symmetric else matrix


@pytest.mark.parametrize("transform", testing.TRANSFORMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_derivatives(name, transform):
    solver, matrix = SOLVERS[name]

    def found(matrix, b):
        held = keep_symmetric(solver, matrix)
        return solver(lambda v: held @ v, b)

    def expected(matrix, b):
        return torch.linalg.inv(keep_symmetric(solver, matrix)) @ b

    testing.assert_equal_under(transform, found, expected, (matrix, RIGHT))


@pytest.mark.parametrize("name", SOLVERS)
def test_a_matrix_by_reverse_mode(name):
    solver, matrix = SOLVERS[name]
    args = matrix.clone().requires_grad_(), RIGHT.clone().requires_grad_()

    def solve(matrix, b):
        return solver(keep_symmetric(solver, matrix), b)

    assert torch.autograd.gradcheck(solve, args)
    assert torch.autograd.gradgradcheck(solve, args)


def coupled(x, p):
    return {"u": p[0] * x["u"] + x["v"][0].sum() * p[1], "v": [p[2] * x["v"][0] - x["u"]]}


def test_full_jacobian_over_several_leaves():
    """The diagonal blocks alone would give (0.5, 0.333)."""

    def matvec(x):
        return {"u": 2 * x["u"] + x["v"], "v": x["u"] + 3 * x["v"]}

    b = {"u": torch.ones(1), "v": torch.ones(1)}
    for solver in (solve_inv(), solve_lu(), solve_cholesky(), solve_cg(), solve_gmres()):
        x = solver(matvec, b)
        torch.testing.assert_close([x["u"].item(), x["v"].item()], [0.4, 0.2])


@pytest.mark.parametrize("solver", [solve_cg(), solve_normal_cg(), solve_gmres(), solve_lu()])
def test_an_unknown_without_dimensions(solver):
    a = torch.tensor(3.0, requires_grad=True)
    x = solver(a, torch.tensor(6.0))
    grad = torch.autograd.grad(x, a)[0]
    torch.testing.assert_close((x.item(), grad.item()), (2.0, -2 / 3))


def test_stopped_early_cg_differentiates_as_a_linear_solve():
    """Its loop has another derivative: none at all where it starts at the solution."""
    diagonal = torch.arange(1.0, 5.0)
    b = torch.ones(4, requires_grad=True)
    x = linalg.cg(torch.diag(diagonal), b, x0=1 / diagonal, rtol=1e-12)
    torch.testing.assert_close(torch.autograd.grad(x.sum(), b)[0], 1 / diagonal)
    early = solve_cg(maxiter=2, on_failure="ignore")
    cotangent = torch.tensor([1.0, -1.0, 2.0, 0.5])
    (grad,) = torch.autograd.grad(early(torch.diag(diagonal), b), b, cotangent)
    torch.testing.assert_close(grad, early(torch.diag(diagonal), cotangent))


def test_each_system_of_a_batch_stops_as_if_alone():
    matrices = torch.stack([torch.eye(3), SYMMETRIC, 5 * SYMMETRIC + SYMMETRIC @ SYMMETRIC])
    rights = torch.stack([RIGHT, torch.zeros(3), RIGHT])
    for make in (solve_cg, solve_gmres, solve_bicgstab, solve_normal_cg):
        solver = make(return_info=True)
        x, info = torch.vmap(solver)(matrices, rights)
        alone = [solver(a, b) for a, b in zip(matrices, rights, strict=True)]
        assert info.iterations.tolist() == [i.iterations.item() for _, i in alone]
        assert info.converged.all()
        torch.testing.assert_close(x, torch.stack([x for x, _ in alone]))
    assert info.iterations.tolist()[:2] == [1, 0]


def test_gmres_survives_a_singular_system_that_has_solutions():
    matrix = torch.diag(torch.tensor([1.0, 2.0, 0.0]))
    x, info = solve_gmres(return_info=True)(matrix, torch.tensor([1.0, 1.0, 0.0]))
    assert info.converged
    torch.testing.assert_close(matrix @ x, torch.tensor([1.0, 1.0, 0.0]))


def test_gmres_grows_where_restarts_stall():
    """Restarted on a cyclic shift it makes no progress at all before the last product."""
    shift = torch.roll(torch.eye(120), 1, 0)
    b = torch.zeros(120)
    b[0] = 1.0
    x, info = solve_gmres(return_info=True)(shift, b)
    assert info.converged
    torch.testing.assert_close(x, torch.linalg.solve(shift, b))
    with pytest.warns(ConvergenceWarning, match="solve_gmres: expected a residual norm"):
        solve_gmres(restart=50)(shift, b)


def test_trees_and_mixed_precision():
    b = {"u": torch.ones(2), "v": [torch.ones(2, dtype=torch.float32)]}
    p = torch.tensor([2.0, 0.5, 3.0])
    x = solve_gmres(rtol=1e-6)(lambda x: coupled(x, p), b)
    assert x["v"][0].dtype == torch.float32
    image = coupled(x, p)
    torch.testing.assert_close(image["u"], b["u"])
    torch.testing.assert_close(image["v"][0].float(), b["v"][0])


def test_a_tree_of_matrices_is_block_diagonal():
    b = {"u": RIGHT, "v": torch.tensor(4.0)}
    matrices = {"u": GENERAL, "v": torch.tensor(2.0)}
    x = solve_gmres()(matrices, b)
    torch.testing.assert_close(x["u"], torch.linalg.solve(GENERAL, RIGHT))
    torch.testing.assert_close(x["v"], torch.tensor(2.0))


class Operator(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(GENERAL.clone())

    def forward(self, v):
        return self.matrix @ v


class Holder:
    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, v):
        return self.matrix @ v

    def product(self, v):
        return self.matrix @ v


def held_in_a_default(matrix):
    def product(v, *, matrix=matrix):
        return matrix @ v

    return product


def held_by_a_function_in_a_container(matrix):
    steps = {"first": lambda v: matrix @ v}
    return lambda v: steps["first"](v)


WAYS_TO_HOLD = {
    "closure": lambda matrix: lambda v: matrix @ v,
    "partial": lambda matrix: functools.partial(torch.mv, matrix),
    "object": Holder,
    "method": lambda matrix: Holder(matrix).product,
    "default": held_in_a_default,
    "container": held_by_a_function_in_a_container,
}


@pytest.mark.parametrize("way", WAYS_TO_HOLD)
def test_what_an_operator_holds_gets_its_gradient_even_from_outside_a_vmap(way):
    rights = torch.stack([RIGHT, 2 * RIGHT])

    def found(matrix):
        def one(matrix, b):
            return solve_gmres()(WAYS_TO_HOLD[way](matrix), b)

        return torch.vmap(one, (None, 0))(matrix, rights)

    def expected(matrix):
        return rights @ torch.linalg.inv(matrix).mT

    testing.assert_equal_under("reverse", found, expected, (GENERAL,))
    testing.assert_equal_under("vmap", found, expected, (GENERAL,))


def test_parameters_of_a_module_get_their_gradient():
    operator = Operator()
    x = solve_gmres()(operator, RIGHT)
    grad = torch.autograd.grad(x.sum(), operator.matrix)[0]
    expected = torch.func.grad(lambda a: (torch.linalg.inv(a) @ RIGHT).sum())(GENERAL)
    torch.testing.assert_close(grad, expected)


def test_products_with_the_graph_of_an_earlier_gradient():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.ones(2, requires_grad=True)
    g = torch.autograd.grad((w**4).sum() + w.sum() ** 2, w, create_graph=True)[0]

    def product(v):
        return torch.autograd.grad(g, w, v, retain_graph=True)[0]

    inverse = torch.linalg.inv(torch.tensor([[14.0, 2.0], [2.0, 50.0]]))
    x = solve_cg()(product, b)
    torch.testing.assert_close(x.detach(), inverse @ b.detach())
    torch.testing.assert_close(torch.autograd.grad(x.sum(), b)[0], inverse.sum(0))


@pytest.mark.parametrize("make", [solve_cg, solve_gmres, solve_bicgstab])
def test_a_preconditioner_saves_iterations_and_leaves_the_derivative(make):
    diagonal = torch.logspace(0, 4, 8)
    matrix = torch.diag(diagonal) + 0.1
    b = torch.ones(8, requires_grad=True)
    plain, preconditioned = (
        make(M=M, maxiter=200, return_info=True, rtol=1e-12)(matrix, b)
        for M in (None, torch.diag(1 / diagonal))
    )
    assert preconditioned[1].iterations < plain[1].iterations
    grads = [torch.autograd.grad(x.sum(), b)[0] for x, _ in (plain, preconditioned)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(grads[1], torch.linalg.inv(matrix).sum(0))


def test_ridge():
    shifted = GENERAL + 0.5 * torch.eye(3)
    for solver in (solve_gmres(ridge=0.5), solve_lu(ridge=0.5)):
        torch.testing.assert_close(solver(GENERAL, RIGHT), torch.linalg.solve(shifted, RIGHT))
    normal = GENERAL.mT @ GENERAL + 0.5 * torch.eye(3)
    expected = torch.linalg.solve(normal, GENERAL.mT @ RIGHT)
    torch.testing.assert_close(solve_normal_cg(ridge=0.5)(GENERAL, RIGHT), expected)
    b = RIGHT.clone().requires_grad_()
    grad = torch.autograd.grad(solve_normal_cg(ridge=0.5)(GENERAL, b).sum(), b)[0]
    torch.testing.assert_close(grad, GENERAL @ torch.linalg.inv(normal).sum(0))


def test_info_and_initial_guess():
    x, info = solve_cg(return_info=True)(SYMMETRIC, RIGHT)
    assert info.converged
    assert 0 < info.iterations <= 3
    assert not info.residual_norm.requires_grad
    again, info = solve_cg(return_info=True, init=x)(SYMMETRIC, RIGHT)
    assert info.iterations == 0
    torch.testing.assert_close(again, x)


def test_default_limit_counts_elements_and_unknowns_without_dimensions():
    hilbert = 1 / (torch.arange(8.0)[:, None] + torch.arange(8.0) + 1)
    with pytest.warns(ConvergenceWarning, match="within 80 iterations"):
        solve_cg(rtol=0.0)(hilbert, torch.ones(8))


def test_failure():
    solve = functools.partial(solve_cg, maxiter=1)
    message = re.escape(
        "solve_cg: expected a residual norm <= max(rtol |b|, atol) within 1 iterations, got "
    )
    with pytest.warns(ConvergenceWarning, match=message):
        solve()(SYMMETRIC, RIGHT)
    with pytest.raises(ConvergenceError, match=message):
        solve(on_failure="raise")(SYMMETRIC, RIGHT)
    _, info = solve(on_failure="ignore", return_info=True)(SYMMETRIC, RIGHT)
    assert not info.converged
    batch = torch.stack([RIGHT, torch.zeros(3)])
    with pytest.raises(ConvergenceError, match=r" in 1 of 2 systems; raise maxiter"):
        torch.vmap(solve(on_failure="raise"), (None, 0))(SYMMETRIC, batch)


@pytest.mark.parametrize(
    ("solver", "matrix", "message"),
    [
        (solve_lu(), torch.zeros(3, 3), "solve_lu: expected a regular matrix"),
        (solve_inv(), torch.zeros(3, 3), "solve_inv: expected a regular matrix"),
        (solve_cholesky(), -torch.eye(3), "solve_cholesky: expected a symmetric positive"),
        (solve_cg(), torch.zeros(3, 3), "solve_cg: expected a residual norm"),
        (solve_neumann(), 3 * torch.eye(3), "solve_neumann: expected a residual norm"),
        (solve_bicgstab(), torch.zeros(3, 3), "solve_bicgstab: expected a residual norm"),
        (solve_gmres(), torch.zeros(3, 3), "solve_gmres: expected a residual norm"),
    ],
)
def test_no_solution(solver, matrix, message):
    with pytest.warns(ConvergenceWarning, match=message):
        solver(matrix.double(), RIGHT)


@pytest.mark.parametrize("name", BY_MATRIX)
def test_solvers_are_values(name):
    solver = BY_MATRIX[name]
    again = pickle.loads(pickle.dumps(solver))
    assert again == solver
    assert hash(again) == hash(solver)
    assert solver != solve_cg(maxiter=77)


def test_options_by_call_and_by_partial():
    M = torch.eye(3)
    assert solve_cg(M=M) == solve_cg(M=M)
    assert solve_cg(M=M) != solve_cg(M=M.clone())
    _, info = solve_cg()(SYMMETRIC, RIGHT, return_info=True)
    _, other = functools.partial(solve_cg(), return_info=True)(SYMMETRIC, RIGHT)
    assert info.iterations == other.iterations


GLOBALS = {"k": torch.tensor(2.0, dtype=F64, requires_grad=True)}
GRAPH = torch.ones(3, dtype=F64, requires_grad=True)
RECORDED = torch.func.vjp(torch.square, GRAPH)[1]


EARLIER = torch.autograd.grad((GRAPH**4).sum(), GRAPH, create_graph=True)[0]


def transpose_of_no_graph():
    b = torch.ones(3, dtype=F64, requires_grad=True)
    x = solve_gmres()(lambda v: torch.autograd.grad(EARLIER, GRAPH, v, retain_graph=True)[0], b)
    x.sum().backward()


REFUSED = [
    (lambda: solve_cg(ridge=-1.0), ValueError, "solve_cg: expected ridge >= 0, got -1.0"),
    (lambda: solve_gmres(rtol=-1.0), ValueError, "solve_gmres: expected rtol >= 0, got -1.0"),
    (lambda: solve_cg(atol="a"), ValueError, "solve_cg: expected atol >= 0, got str"),
    (lambda: solve_cg(maxiter=0), ValueError, "solve_cg: expected maxiter >= 1, got 0"),
    (lambda: solve_cg(maxiter=True), ValueError, "solve_cg: expected maxiter >= 1, got True"),
    (
        lambda: solve_cg(maxiter=2.0),
        ValueError,
        "solve_cg: expected maxiter >= 1, got 2.0; give",
    ),
    (lambda: solve_cg(atol=None), ValueError, "solve_cg: expected atol >= 0, got NoneType"),
    (
        lambda: solve_cg(ridge=math.inf),
        ValueError,
        "solve_cg: expected ridge >= 0, got inf; give",
    ),
    (lambda: solve_cg(rtol=math.nan), ValueError, "solve_cg: expected rtol >= 0, got nan"),
    (
        lambda: solve_cg(SYMMETRIC, RIGHT),
        TypeError,
        "solve_cg: expected options by name, got 2 arguments by position; write solve_cg()(A, b)",
    ),
    (
        lambda: solve_cg()(SYMMETRIC, RIGHT, tol=0.1),
        TypeError,
        "solve_cg: expected options among ridge, init, rtol, atol, maxiter, M, return_info, "
        "on_failure, got tol; a tolerance is rtol or atol",
    ),
    (
        lambda: solve_lu()(SYMMETRIC, RIGHT, atol=3.0),
        TypeError,
        "solve_lu: expected ridge, return_info or on_failure, got atol; a direct method does not",
    ),
    (
        lambda: solve_cg()(SYMMETRIC.float(), RIGHT),
        TypeError,
        "solve_cg: expected A in the precision of the right side, f64[3], got f32[3, 3]; convert",
    ),
    *[
        (
            lambda make=make: make()(torch.eye(2).bfloat16(), torch.ones(2).bfloat16()),
            TypeError,
            f"{make.__name__}: expected unknowns in float32 or float64, got bf16[2]; convert them,",
        )
        for make in (solve_gmres, solve_lu, solve_cholesky, solve_inv)
    ],
    (
        lambda: solve_cg()(lambda v: v * GLOBALS["k"], RIGHT).sum().backward(),
        ValueError,
        "in a list or dict among the globals, or as attributes of an object that is not callable; "
        "compute with them inside A, from local variables, or detach them",
    ),
    (lambda: solve_gmres(restart=0), ValueError, "solve_gmres: expected restart >= 1, got 0"),
    (lambda: solve_neumann(alpha=0.0), ValueError, "solve_neumann: expected alpha > 0, got 0.0"),
    (
        lambda: solve_cg(on_failure="stop"),
        ValueError,
        "solve_cg: expected on_failure='warn', 'raise' or 'ignore', got 'stop'",
    ),
    (
        lambda: solve_lu()(SYMMETRIC, RIGHT, rtol=0.1),
        TypeError,
        "solve_lu: expected ridge, return_info or on_failure, got rtol; a direct method does not",
    ),
    (
        lambda: solve_cg()(SYMMETRIC, torch.ones(2)),
        ValueError,
        "solve_cg: expected A of shape [2, 2] for a right side of shape [2], got f64[3, 3]",
    ),
    (
        lambda: solve_cg()({"u": SYMMETRIC}, {"u": torch.ones(2)}),
        ValueError,
        "solve_cg: expected A of shape [2, 2] for a right side of shape [2], got f64[3, 3], at "
        "['u']; for another product, pass it as a function",
    ),
    (
        lambda: solve_cg()([SYMMETRIC], RIGHT),
        ValueError,
        "solve_cg: expected A to be a function, a matrix, or a tree of matrices with the structure",
    ),
    (
        lambda: solve_cg()(3.0, RIGHT),
        TypeError,
        "solve_cg: expected A to be a function, a matrix or a tree of matrices, got float",
    ),
    (
        lambda: solve_cg()(SYMMETRIC, {"u": [3]}),
        TypeError,
        "solve_cg: expected b to hold real floating tensors, got int, at ['u'][0]",
    ),
    (
        lambda: solve_cg()(SYMMETRIC, torch.ones(3, dtype=torch.complex64)),
        TypeError,
        "solve_cg: expected b to hold real floating tensors, got c64[3]",
    ),
    (
        lambda: solve_cg()(SYMMETRIC, {}),
        ValueError,
        "solve_cg: expected b to hold at least one tensor, got none",
    ),
    (
        lambda: solve_cg()(lambda v: v[:2], RIGHT),
        ValueError,
        "solve_cg: expected the image of A to have the shape [3], got f64[2]; give it the shapes",
    ),
    (
        lambda: solve_cg()(lambda v: [v], RIGHT),
        ValueError,
        "solve_cg: expected the image of A to have the structure PyTreeSpec(*",
    ),
    (
        lambda: solve_cg(init=torch.ones(2))(SYMMETRIC, RIGHT),
        ValueError,
        "solve_cg: expected init to have the shape [3], got f64[2]",
    ),
    (
        lambda: solve_cg()(lambda v: RECORDED(v)[0], RIGHT),
        ValueError,
        "solve_cg: expected A to hold the tensors to differentiate in as a matrix, in its closure,",
    ),
    (
        transpose_of_no_graph,
        ValueError,
        "linear_solve: expected an operator that torch can transpose, got one whose image has no",
    ),
    (
        lambda: linalg.ns_inv({"a": torch.ones(2, 3)}),
        TypeError,
        "ns_inv: expected square matrices, got f64[2, 3], at ['a']",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_linalg_on_matrices_operators_and_trees():
    expected = torch.linalg.solve(SYMMETRIC, RIGHT)
    for A in (SYMMETRIC, lambda v: SYMMETRIC @ v):
        x = linalg.cg(A, RIGHT, rtol=1e-12)
        torch.testing.assert_close(x, expected)
        x = linalg.ns(A, RIGHT, 2000, alpha=0.2, rtol=1e-12)
        torch.testing.assert_close(x, expected)
    tree = {"a": SYMMETRIC, "b": torch.tensor([[0.5]])}
    found = linalg.ns_inv(tree, alpha=0.2, rtol=1e-13)
    torch.testing.assert_close(found, treeops.tree_map(torch.linalg.inv, tree))


def test_a_truncated_neumann_series_is_its_definition():
    matrix = 0.2 * GENERAL
    x = linear_solve.solve_neumann(maxiter=2, on_failure="ignore")(matrix, RIGHT)
    rest = torch.eye(3) - matrix
    torch.testing.assert_close(x, RIGHT + rest @ RIGHT)


def test_linalg_warns():
    with pytest.warns(ConvergenceWarning, match="solve_neumann: expected a residual norm"):
        linalg.ns(3 * torch.eye(2), torch.ones(2), 5)
    with pytest.warns(ConvergenceWarning, match="solve_cg: expected a residual norm"):
        linalg.cg(SYMMETRIC, RIGHT, maxiter=1)
