# SPDX-License-Identifier: Apache-2.0
"""Differentiate through optimization in PyTorch.

Layout. Explicit: `meta` (optimizers whose steps stay in the graph; `_meta_step` the step,
`_meta_states` what is kept between steps, `_meta_documentation` what the classes say),
`_schedule_free` (those that evaluate at an average), `_around` (those around any other), `state`
(taking, giving back, cloning and cutting the state of modules and Meta optimizers; `_copying`,
`_cutting` of tensors), `_containers` (writing tensors into modules), `_unroll` (functional loops;
`_steps` their steps, `_first_order` gradients as constants, `_recompute` functions that run again
for every derivative, `_recording` what such a run repeats, `_repeats` whether it does), `_forward`
(hypergradients in forward mode), `_innerloop` (the form of higher). Long runs: `_replay`
(functional), `_replay_loop` (of a module), `_replay_run` (forward, and back step by step),
`_binomial` (which carries are kept), `_offload` (where), `_files`, `_ledger` (how far a backward
pass has come), `_progress`; `_smoothness` (whether the gradient is of use).
Implicit: `implicit` (derivatives of roots and fixed points), `_root_problem`, `_at_root`,
`_known_root`, `_root_rule`, `_implicit_rule` (behind them), `_explicit` (making closed-over tensors
explicit), `linear_solve`, `linalg`; `fixed_point`, `root`, `minimize` (solvers, which give
numbers), `_iteration`, `_convergence`, `_options` (what solvers share). Zero-order: `_zero_order`,
`_zero_order_rule` (its place in the graph), `_zero_order_estimate`, `_zero_order_batches` (many
evaluations at a time), `_zero_order_settings`, `_directions`, `_reads` (which tensors a function
looks at), `_random_states` (replay of random numbers). `nn` (modules with derivatives of their
own): `_two_loop_module` (where attributes belong), `_meta_module` (what is done to them),
`_implicit_module`, `_implicit_solve` (what differentiates its solve), `_zero_order_module`,
`_methods` (methods that are wrapped). `_tracking` (what a tensor is to torch.func and autograd),
`_statistics` (what nodes tell of their solves), `testing` (problems with answers).
"""

from importlib.metadata import version as _version

from optdiff import fixed_point as fixed_point
from optdiff import linalg as linalg
from optdiff import linear_solve as linear_solve
from optdiff import minimize as minimize
from optdiff import nn as nn
from optdiff import root as root
from optdiff import testing as testing
from optdiff._around import MetaReduceOnPlateau as MetaReduceOnPlateau
from optdiff._around import MetaSAM as MetaSAM
from optdiff._forward import forward_hypergradient as forward_hypergradient
from optdiff._innerloop import DifferentiableOptimizer as DifferentiableOptimizer
from optdiff._innerloop import innerloop_ctx as innerloop_ctx
from optdiff._replay import replay as replay
from optdiff._replay_loop import Replay as Replay
from optdiff._replay_loop import ShuffledBatches as ShuffledBatches
from optdiff._schedule_free import MetaScheduleFreeAdamW as MetaScheduleFreeAdamW
from optdiff._schedule_free import MetaScheduleFreeSGD as MetaScheduleFreeSGD
from optdiff._smoothness import Smoothness as Smoothness
from optdiff._smoothness import check_smoothness as check_smoothness
from optdiff._unroll import unroll as unroll
from optdiff._zero_order import zero_order as zero_order
from optdiff.implicit import custom_fixed_point as custom_fixed_point
from optdiff.implicit import custom_root as custom_root
from optdiff.implicit import root_jvp as root_jvp
from optdiff.implicit import root_vjp as root_vjp
from optdiff.meta import MetaAdaBelief as MetaAdaBelief
from optdiff.meta import MetaAdaDelta as MetaAdaDelta
from optdiff.meta import MetaAdadelta as MetaAdadelta
from optdiff.meta import MetaAdafactor as MetaAdafactor
from optdiff.meta import MetaAdaGrad as MetaAdaGrad
from optdiff.meta import MetaAdagrad as MetaAdagrad
from optdiff.meta import MetaAdam as MetaAdam
from optdiff.meta import MetaAdaMax as MetaAdaMax
from optdiff.meta import MetaAdamax as MetaAdamax
from optdiff.meta import MetaAdamaxW as MetaAdamaxW
from optdiff.meta import MetaAdamW as MetaAdamW
from optdiff.meta import MetaAdan as MetaAdan
from optdiff.meta import MetaAdEMAMix as MetaAdEMAMix
from optdiff.meta import MetaADOPT as MetaADOPT
from optdiff.meta import MetaAMSGrad as MetaAMSGrad
from optdiff.meta import MetaASGD as MetaASGD
from optdiff.meta import MetaDAdaptAdamW as MetaDAdaptAdamW
from optdiff.meta import MetaFromage as MetaFromage
from optdiff.meta import MetaLamb as MetaLamb
from optdiff.meta import MetaLARS as MetaLARS
from optdiff.meta import MetaLion as MetaLion
from optdiff.meta import MetaMADGRAD as MetaMADGRAD
from optdiff.meta import MetaMuon as MetaMuon
from optdiff.meta import MetaNAdam as MetaNAdam
from optdiff.meta import MetaNAdamW as MetaNAdamW
from optdiff.meta import MetaNoisySGD as MetaNoisySGD
from optdiff.meta import MetaNovoGrad as MetaNovoGrad
from optdiff.meta import MetaOptimisticAdam as MetaOptimisticAdam
from optdiff.meta import MetaOptimisticGradientDescent as MetaOptimisticGradientDescent
from optdiff.meta import MetaOptimizer as MetaOptimizer
from optdiff.meta import MetaPolyakSGD as MetaPolyakSGD
from optdiff.meta import MetaProdigy as MetaProdigy
from optdiff.meta import MetaRAdam as MetaRAdam
from optdiff.meta import MetaRMSProp as MetaRMSProp
from optdiff.meta import MetaRMSprop as MetaRMSprop
from optdiff.meta import MetaSGD as MetaSGD
from optdiff.meta import MetaShampoo as MetaShampoo
from optdiff.meta import MetaSM3 as MetaSM3
from optdiff.meta import MetaSOAP as MetaSOAP
from optdiff.meta import MetaSophia as MetaSophia
from optdiff.meta import MetaYogi as MetaYogi
from optdiff.state import ModuleState as ModuleState
from optdiff.state import extract_state_dict as extract_state_dict
from optdiff.state import module_clone as module_clone
from optdiff.state import module_detach_ as module_detach_
from optdiff.state import recover_state_dict as recover_state_dict
from optdiff.state import stop_gradient as stop_gradient

# Without the modules: their star import would take the place of ``from torch import nn``.
__all__ = [
    "DifferentiableOptimizer",
    "MetaADOPT",
    "MetaAMSGrad",
    "MetaASGD",
    "MetaAdEMAMix",
    "MetaAdaBelief",
    "MetaAdaDelta",
    "MetaAdaGrad",
    "MetaAdaMax",
    "MetaAdadelta",
    "MetaAdafactor",
    "MetaAdagrad",
    "MetaAdam",
    "MetaAdamW",
    "MetaAdamax",
    "MetaAdamaxW",
    "MetaAdan",
    "MetaDAdaptAdamW",
    "MetaFromage",
    "MetaLARS",
    "MetaLamb",
    "MetaLion",
    "MetaMADGRAD",
    "MetaMuon",
    "MetaNAdam",
    "MetaNAdamW",
    "MetaNoisySGD",
    "MetaNovoGrad",
    "MetaOptimisticAdam",
    "MetaOptimisticGradientDescent",
    "MetaOptimizer",
    "MetaPolyakSGD",
    "MetaProdigy",
    "MetaRAdam",
    "MetaRMSProp",
    "MetaRMSprop",
    "MetaReduceOnPlateau",
    "MetaSAM",
    "MetaSGD",
    "MetaSM3",
    "MetaSOAP",
    "MetaScheduleFreeAdamW",
    "MetaScheduleFreeSGD",
    "MetaShampoo",
    "MetaSophia",
    "MetaYogi",
    "ModuleState",
    "Replay",
    "ShuffledBatches",
    "Smoothness",
    "check_smoothness",
    "custom_fixed_point",
    "custom_root",
    "extract_state_dict",
    "forward_hypergradient",
    "innerloop_ctx",
    "module_clone",
    "module_detach_",
    "recover_state_dict",
    "replay",
    "root_jvp",
    "root_vjp",
    "stop_gradient",
    "unroll",
    "zero_order",
]
__version__ = _version("optdiff")
