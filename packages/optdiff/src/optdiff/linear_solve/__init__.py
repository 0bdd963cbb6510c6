# SPDX-License-Identifier: Apache-2.0
"""Linear solvers as values: ``solve_cg(rtol=1e-8)`` is a solver, ``solve_cg()(A, b)`` a solution.

Layout: `_cg`, `_nonsymmetric`, `_neumann`, `_direct` (the methods), `_given` (a function of the
user), `_recursion` (what CG and BiCGStab share), `_solver` (options and calls), `_rule` (the
derivative), `_operators` (what ``A`` may be).
"""

from optdiff._convergence import ConvergenceError as ConvergenceError
from optdiff._convergence import ConvergenceWarning as ConvergenceWarning
from optdiff.linear_solve._cg import solve_cg as solve_cg
from optdiff.linear_solve._cg import solve_normal_cg as solve_normal_cg
from optdiff.linear_solve._direct import solve_cholesky as solve_cholesky
from optdiff.linear_solve._direct import solve_inv as solve_inv
from optdiff.linear_solve._direct import solve_lu as solve_lu
from optdiff.linear_solve._neumann import solve_neumann as solve_neumann
from optdiff.linear_solve._nonsymmetric import solve_bicgstab as solve_bicgstab
from optdiff.linear_solve._nonsymmetric import solve_gmres as solve_gmres
from optdiff.linear_solve._solver import LinearSolver as LinearSolver
from optdiff.linear_solve._solver import SolveInfo as SolveInfo
