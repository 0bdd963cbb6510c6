# SPDX-License-Identifier: Apache-2.0
"""Composable, differentiable gradient transformations and optimizers for PyTorch.

Layout: `_transform` (what a transformation is, update modes, apply_updates), `_hyperparams` and
`_leafwise` (what formulas are made of), `_chain` (combinators), one file per family (`_scaling`,
`_weight_decay`, `_momentum`, `_moments`), `_optimizers` (the table), `optim` (torch.optim classes
derived from it), `func` (FuncOptimizer). Everything public stands here.
"""

from optcore._chain import chain as chain
from optcore._moments import ScaleByAdamState as ScaleByAdamState
from optcore._moments import adam as adam
from optcore._moments import adamw as adamw
from optcore._moments import scale_by_adam as scale_by_adam
from optcore._momentum import TraceState as TraceState
from optcore._momentum import sgd as sgd
from optcore._momentum import trace as trace
from optcore._optimizers import OPTIMIZERS as OPTIMIZERS
from optcore._rows import OptimizerRow as OptimizerRow
from optcore._scaling import identity as identity
from optcore._scaling import scale as scale
from optcore._scaling import scale_by_learning_rate as scale_by_learning_rate
from optcore._scaling import scale_by_schedule as scale_by_schedule
from optcore._transform import EmptyState as EmptyState
from optcore._transform import GradientTransformation as GradientTransformation
from optcore._transform import ScheduleState as ScheduleState
from optcore._transform import apply_updates as apply_updates
from optcore._tree import ParamDict as ParamDict
from optcore._tree import map_tensors as map_tensors
from optcore._weight_decay import add_decayed_weights as add_decayed_weights
from optcore.func import FuncOptimizer as FuncOptimizer
from optcore.func import check_loss as check_loss
from optcore.optim import SGD as SGD
from optcore.optim import Adam as Adam
from optcore.optim import AdamW as AdamW
from optcore.optim import Optimizer as Optimizer
from optcore.optim import derive_class as derive_class

__version__ = "0.1.0"
