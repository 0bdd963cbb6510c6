# SPDX-License-Identifier: Apache-2.0
"""Differentiate through optimization in PyTorch.

Layout: `meta` (optimizers whose steps stay in the graph), `state` (taking, giving back, cloning and
cutting the state of modules and Meta optimizers), `_containers` (writing tensors into modules).
"""

from optdiff.meta import MetaAdam as MetaAdam
from optdiff.meta import MetaAdamW as MetaAdamW
from optdiff.meta import MetaOptimizer as MetaOptimizer
from optdiff.meta import MetaSGD as MetaSGD
from optdiff.state import ModuleState as ModuleState
from optdiff.state import extract_state_dict as extract_state_dict
from optdiff.state import module_clone as module_clone
from optdiff.state import module_detach_ as module_detach_
from optdiff.state import recover_state_dict as recover_state_dict
from optdiff.state import stop_gradient as stop_gradient

__version__ = "0.1.0"
