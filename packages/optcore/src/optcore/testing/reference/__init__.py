# SPDX-License-Identifier: Apache-2.0
"""Textbook formulas of the optimizers: a plain loop over one tensor, written from the papers.

``reference.adam(param, grad, steps, lr=0.1)`` takes ``steps`` steps from ``param`` with the
gradients ``grad(param, step)``, ``step`` counting from 0, and returns the last parameter. Options
are those of the functional form. Nothing is fast, nothing is shared, everything is out of place:
results carry their graph, so that derivatives can be compared too. Use float64.
"""

from optcore.testing.reference._descent import asgd as asgd
from optcore.testing.reference._descent import fromage as fromage
from optcore.testing.reference._descent import lion as lion
from optcore.testing.reference._descent import rprop as rprop
from optcore.testing.reference._descent import schedule_free_adamw as schedule_free_adamw
from optcore.testing.reference._descent import schedule_free_sgd as schedule_free_sgd
from optcore.testing.reference._descent import sgd as sgd
from optcore.testing.reference._descent import sign_sgd as sign_sgd
from optcore.testing.reference._descent import signum as signum
from optcore.testing.reference._gradient import Gradient as Gradient
from optcore.testing.reference._mixed import ademamix as ademamix
from optcore.testing.reference._mixed import adopt as adopt
from optcore.testing.reference._mixed import madgrad as madgrad
from optcore.testing.reference._mixed import noisy_sgd as noisy_sgd
from optcore.testing.reference._mixed import optimistic_adam as optimistic_adam
from optcore.testing.reference._mixed import (
    optimistic_gradient_descent as optimistic_gradient_descent,
)
from optcore.testing.reference._moments import adabelief as adabelief
from optcore.testing.reference._moments import adam as adam
from optcore.testing.reference._moments import adamax as adamax
from optcore.testing.reference._moments import adamaxw as adamaxw
from optcore.testing.reference._moments import adamw as adamw
from optcore.testing.reference._moments import adan as adan
from optcore.testing.reference._moments import amsgrad as amsgrad
from optcore.testing.reference._moments import nadam as nadam
from optcore.testing.reference._moments import nadamw as nadamw
from optcore.testing.reference._moments import novograd as novograd
from optcore.testing.reference._moments import radam as radam
from optcore.testing.reference._moments import yogi as yogi
from optcore.testing.reference._preconditioned import shampoo as shampoo
from optcore.testing.reference._preconditioned import soap as soap
from optcore.testing.reference._scaled import adadelta as adadelta
from optcore.testing.reference._scaled import adafactor as adafactor
from optcore.testing.reference._scaled import adagrad as adagrad
from optcore.testing.reference._scaled import lamb as lamb
from optcore.testing.reference._scaled import lars as lars
from optcore.testing.reference._scaled import muon as muon
from optcore.testing.reference._scaled import rmsprop as rmsprop
from optcore.testing.reference._scaled import sm3 as sm3
