# SPDX-License-Identifier: Apache-2.0
"""Solvers of ``min f(x)``: gradient descent, proximal gradient, Newton, L-BFGS.

They give numbers; :func:`optdiff.custom_root` of the gradient gives these their derivatives. Under
``vmap`` each problem of a batch stops when it has converged.
"""

from optdiff._iteration import SolverResult as SolverResult
from optdiff.minimize._descent import gradient_descent as gradient_descent
from optdiff.minimize._descent import proximal_gradient as proximal_gradient
from optdiff.minimize._newton import lbfgs as lbfgs
from optdiff.minimize._newton import newton as newton
