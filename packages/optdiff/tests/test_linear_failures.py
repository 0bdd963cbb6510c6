# SPDX-License-Identifier: Apache-2.0
"""Linear solvers tell the truth about what they reached."""

import inspect
import linecache
import warnings

import pytest
import torch

from optdiff import custom_root, minimize
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

EVERY = (
    solve_cg,
    solve_normal_cg,
    solve_bicgstab,
    solve_gmres,
    solve_neumann,
    solve_lu,
    solve_cholesky,
    solve_inv,
)
DIRECT = (solve_lu, solve_cholesky, solve_inv)
SINGULAR = torch.arange(1.0, 10.0, dtype=torch.float64).reshape(3, 3)  # but for rounding
RIGHT = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
TRIANGULAR = torch.tensor([[4.0, 3.0], [0.0, 2.0]], dtype=torch.float64)


def spread(decades, size=60):
    """Symmetric positive definite, with a spectrum from 1 down to ``10 ** -decades``."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    matrix = basis @ torch.diag(torch.logspace(0, -decades, size)) @ basis.mT
    return (matrix + matrix.mT) / 2, torch.randn(size, generator=generator)


@pytest.mark.parametrize("make", [solve_lu, solve_inv, solve_cholesky])
def test_a_matrix_that_is_singular_but_for_rounding(make):
    matrix = SINGULAR.mT @ SINGULAR if make is solve_cholesky else SINGULAR
    with pytest.raises(ConvergenceError, match=f"{make.__name__}: expected a "):
        make(on_failure="raise")(matrix, RIGHT)
    _, info = torch.vmap(make(return_info=True, on_failure="ignore"))(
        torch.stack([matrix, torch.eye(3)]), torch.stack([RIGHT, RIGHT])
    )
    assert info.converged.tolist() == [False, True]


@pytest.mark.parametrize("make", DIRECT)
def test_an_ill_conditioned_matrix_is_no_singular_one(make):
    matrix, b = spread(9)
    _, info = make(return_info=True, on_failure="raise")(matrix, b)
    assert info.converged


@pytest.mark.parametrize("right", [[1.0, 1.0], [1.0, 0.0]])
def test_cholesky_of_a_matrix_that_is_not_symmetric(right):
    """Of the second system it even finds the solution, but not that of the transpose."""
    with pytest.raises(ConvergenceError, match="solve_cholesky: expected a symmetric positive def"):
        solve_cholesky(on_failure="raise")(TRIANGULAR, torch.tensor(right))


@pytest.mark.parametrize("decades", [2, 6, 10])
@pytest.mark.parametrize("make", [solve_cg, solve_bicgstab, solve_gmres])
def test_the_residual_is_that_of_the_solution(make, decades):
    matrix, b = spread(decades)
    x, info = make(return_info=True, on_failure="ignore", maxiter=1500)(matrix, b)
    residual = torch.linalg.vector_norm(b - matrix @ x)
    torch.testing.assert_close(info.residual_norm, residual, rtol=1e-9, atol=0)
    tolerance = torch.finfo(torch.float64).eps ** (2 / 3) * torch.linalg.vector_norm(b)
    assert info.converged == (residual <= tolerance)


def test_cg_goes_on_where_its_recursion_thinks_it_is_done():
    """From afar the recursion loses the digits that the solution needs."""
    matrix, b = spread(2)
    for make in (solve_cg, solve_bicgstab):
        x, info = make(return_info=True, init=torch.full((60,), 1e9))(matrix, b)
        assert info.converged
        torch.testing.assert_close(x, torch.linalg.solve(matrix, b), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", EVERY)
def test_what_is_not_finite_gives_nan_and_leaves_its_neighbours(make):
    rights = torch.ones(3, 2)
    rights[1, 0] = torch.nan
    x = torch.vmap(make(on_failure="ignore"), (None, 0))(torch.eye(2), rights)
    torch.testing.assert_close(x[::2], torch.ones(2, 2))
    assert x[1].isnan().all()
    assert make(on_failure="ignore")(torch.eye(2), rights[1]).isnan().all()
    with pytest.warns(ConvergenceWarning, match="got nan"):
        make()(torch.eye(2), rights[1])


def test_the_gradient_at_a_root_that_is_not_finite():
    root = custom_root(lambda x, a: x**2 - a, solve=solve_cg(on_failure="ignore"))
    square_root = root(lambda init, a: a.sqrt())
    slope = torch.func.grad(lambda a: square_root(None, a))
    found = torch.vmap(slope)(torch.tensor([4.0, -1.0, 9.0]))
    expected = torch.tensor([1 / 4, torch.nan, 1 / 6])
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("make", EVERY)
def test_no_unknowns(make):
    x, info = make(return_info=True)(torch.zeros(0, 0), torch.zeros(0))
    assert x.shape == (0,)
    assert info.converged


def by_a_solver():
    solve_cg(maxiter=1)(SINGULAR.mT @ SINGULAR, RIGHT)


def by_a_minimizer():
    minimize.newton(lambda x: x.cosh().sum(), torch.full((2,), 9.0), maxiter=1)


def by_a_backward():
    root = custom_root(lambda x, a: SINGULAR.mT @ SINGULAR @ x - a, solve=solve_cg(maxiter=1))
    a = RIGHT.clone().requires_grad_()
    root(lambda init, a: a.clone())(None, a)[0].backward()


@pytest.mark.parametrize("fail", [by_a_solver, by_a_minimizer, by_a_backward])
def test_a_warning_points_at_the_users_line(fail):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        fail()
    (place,) = [warning for warning in caught if warning.category is ConvergenceWarning]
    assert place.filename == __file__
    assert linecache.getline(place.filename, place.lineno) in inspect.getsource(fail)
