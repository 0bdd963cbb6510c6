# SPDX-License-Identifier: Apache-2.0
"""Composable, differentiable gradient transformations and optimizers for PyTorch.

Layout: `_transform` (what a transformation is), `_modes` (when a step overwrites), `_apply`
(apply_updates), `_tokens` (how values compare), `_hyperparams` and `_leafwise` (what formulas are
made of), `_deferred` and `_tensorlist` (many leaves at a time in place), `_kept` (what a class
keeps from step to step), `_chain`, `_masking`, `_partition`, `_choice`, `_control`,
`_accumulation`, `_lookahead`, `_sam`, `_plateau`, `_adapters`, `_inject` (combinators), `_scaling`,
`_weight_decay`, `_norms`, `_clipping`, `_normalization`, `_param_scaling`, `_repairs`, `_hooks`,
`_averaging`, `_noise`, `_privacy`, `_monitoring`, `_proximal` (transformations of no single
optimizer), `_projections`, `_perturbations`, `_curvature` (functions), `_schedules`, `_warmup`,
`_piecewise`, `_tree_math`, `_moment_rules` (what Adam and its relatives share), `_anchor`
(parameters that a state keeps), `_matrix_root`, then one file per optimizer or family (`_adam`,
`_momentum`, `_rmsprop`, `_sign`, ...), `_kernels` (those of other packages), `_optimizers` (the
table), `_optimizer` and `_class_state` (any transformation as a `torch.optim.Optimizer`), `optim`
(classes derived from the table), `_param_group`, `_torch_state` (from and to torch.optim),
`_schedule_free_optim` (classes that switch between training and evaluation), `_wolfe` (line
searches on numbers), `_line` (the line they see), `_backtracking`, `_zoom`, `_reuse`, `_two_loop`,
`_lbfgs`, `_lbfgs_class`, `func` (FuncOptimizer), `_lazy` (what is imported when first used).
Everything public stands here.
"""

from importlib.metadata import version as _version
from types import ModuleType as _ModuleType
from typing import TYPE_CHECKING
from typing import Any as _Any

from optcore._accumulation import MultiSteps as MultiSteps
from optcore._accumulation import MultiStepsState as MultiStepsState
from optcore._accumulation import apply_every as apply_every
from optcore._accumulation import has_updated as has_updated
from optcore._accumulation import multi_steps as multi_steps
from optcore._adabelief import adabelief as adabelief
from optcore._adabelief import scale_by_belief as scale_by_belief
from optcore._adadelta import ScaleByAdadeltaState as ScaleByAdadeltaState
from optcore._adadelta import adadelta as adadelta
from optcore._adadelta import scale_by_adadelta as scale_by_adadelta
from optcore._adafactor import ScaleByAdafactorState as ScaleByAdafactorState
from optcore._adafactor import adafactor as adafactor
from optcore._adafactor import scale_by_adafactor as scale_by_adafactor
from optcore._adagrad import ScaleByRssState as ScaleByRssState
from optcore._adagrad import adagrad as adagrad
from optcore._adagrad import scale_by_rss as scale_by_rss
from optcore._adam import adam as adam
from optcore._adam import adamw as adamw
from optcore._adam import scale_by_adam as scale_by_adam
from optcore._adamax import adamax as adamax
from optcore._adamax import adamaxw as adamaxw
from optcore._adamax import scale_by_adamax as scale_by_adamax
from optcore._adan import ScaleByAdanState as ScaleByAdanState
from optcore._adan import adan as adan
from optcore._adan import scale_by_adan as scale_by_adan
from optcore._adapters import flatten as flatten
from optcore._adapters import named_chain as named_chain
from optcore._adapters import stateless as stateless
from optcore._adapters import stateless_with_tree_map as stateless_with_tree_map
from optcore._adapters import with_extra_args_support as with_extra_args_support
from optcore._ademamix import ScaleByAdemamixState as ScaleByAdemamixState
from optcore._ademamix import ademamix as ademamix
from optcore._ademamix import scale_by_ademamix as scale_by_ademamix
from optcore._adopt import adopt as adopt
from optcore._adopt import scale_by_adopt as scale_by_adopt
from optcore._amsgrad import ScaleByAmsgradState as ScaleByAmsgradState
from optcore._amsgrad import amsgrad as amsgrad
from optcore._amsgrad import scale_by_amsgrad as scale_by_amsgrad
from optcore._apply import apply_updates as apply_updates
from optcore._asgd import ScaleByAsgdState as ScaleByAsgdState
from optcore._asgd import asgd as asgd
from optcore._asgd import scale_by_asgd as scale_by_asgd
from optcore._averaging import EmaState as EmaState
from optcore._averaging import ema as ema
from optcore._chain import chain as chain
from optcore._chain import chain_flat as chain_flat
from optcore._clipping import adaptive_grad_clip as adaptive_grad_clip
from optcore._clipping import clip as clip
from optcore._clipping import clip_by_block_rms as clip_by_block_rms
from optcore._clipping import clip_by_global_norm as clip_by_global_norm
from optcore._clipping import clip_grad_norm as clip_grad_norm
from optcore._control import ApplyIfFiniteState as ApplyIfFiniteState
from optcore._control import ConditionallyMaskState as ConditionallyMaskState
from optcore._control import ConditionallyTransformState as ConditionallyTransformState
from optcore._control import apply_if_finite as apply_if_finite
from optcore._control import conditionally_mask as conditionally_mask
from optcore._control import conditionally_transform as conditionally_transform
from optcore._control import skip_large_updates as skip_large_updates
from optcore._control import skip_not_finite as skip_not_finite
from optcore._dadapt import DAdaptAdamWState as DAdaptAdamWState
from optcore._dadapt import ProdigyState as ProdigyState
from optcore._dadapt import dadapt_adamw as dadapt_adamw
from optcore._dadapt import prodigy as prodigy
from optcore._fromage import fromage as fromage
from optcore._hooks import nan_to_num_hook as nan_to_num_hook
from optcore._hooks import register_hook as register_hook
from optcore._hooks import zero_nan_hook as zero_nan_hook
from optcore._inject import InjectHyperparamsState as InjectHyperparamsState
from optcore._inject import inject_hyperparams as inject_hyperparams
from optcore._kernels import KernelsStatus as KernelsStatus
from optcore._kernels import kernels_status as kernels_status
from optcore._layerwise import lamb as lamb
from optcore._layerwise import lars as lars
from optcore._lazy import MODULE_OF as _MODULE_OF
from optcore._lookahead import LookaheadParams as LookaheadParams
from optcore._lookahead import LookaheadState as LookaheadState
from optcore._lookahead import lookahead as lookahead
from optcore._madgrad import ScaleByMadgradState as ScaleByMadgradState
from optcore._madgrad import madgrad as madgrad
from optcore._madgrad import scale_by_madgrad as scale_by_madgrad
from optcore._masking import MaskedNode as MaskedNode
from optcore._masking import MaskedState as MaskedState
from optcore._masking import freeze as freeze
from optcore._masking import masked as masked
from optcore._masking import set_to_zero as set_to_zero
from optcore._modes import out_of_place as out_of_place
from optcore._moment_rules import ScaleByAdamState as ScaleByAdamState
from optcore._momentum import TraceState as TraceState
from optcore._momentum import sgd as sgd
from optcore._momentum import trace as trace
from optcore._muon import ScaleByMuonState as ScaleByMuonState
from optcore._muon import muon as muon
from optcore._muon import scale_by_muon as scale_by_muon
from optcore._nadam import ScaleByNadamState as ScaleByNadamState
from optcore._nadam import nadam as nadam
from optcore._nadam import nadamw as nadamw
from optcore._nadam import scale_by_nadam as scale_by_nadam
from optcore._noise import AddNoiseState as AddNoiseState
from optcore._noise import add_noise as add_noise
from optcore._noise import noisy_sgd as noisy_sgd
from optcore._normalization import centralize as centralize
from optcore._normalization import normalize as normalize
from optcore._normalization import normalize_by_update_norm as normalize_by_update_norm
from optcore._norms import global_norm as global_norm
from optcore._norms import unitwise_norm as unitwise_norm
from optcore._novograd import ScaleByNovogradState as ScaleByNovogradState
from optcore._novograd import novograd as novograd
from optcore._novograd import scale_by_novograd as scale_by_novograd
from optcore._optimistic import ScaleByOptimisticGradientState as ScaleByOptimisticGradientState
from optcore._optimistic import optimistic_adam as optimistic_adam
from optcore._optimistic import optimistic_gradient_descent as optimistic_gradient_descent
from optcore._optimistic import scale_by_optimistic_gradient as scale_by_optimistic_gradient
from optcore._optimizers import INFORMED_OPTIMIZERS as INFORMED_OPTIMIZERS
from optcore._optimizers import OPTIMIZERS as OPTIMIZERS
from optcore._param_scaling import scale_by_param_block_norm as scale_by_param_block_norm
from optcore._param_scaling import scale_by_param_block_rms as scale_by_param_block_rms
from optcore._param_scaling import scale_by_trust_ratio as scale_by_trust_ratio
from optcore._partition import PartitionState as PartitionState
from optcore._partition import multi_transform as multi_transform
from optcore._partition import partition as partition
from optcore._partition import selective_transform as selective_transform
from optcore._piecewise import cosine_onecycle_schedule as cosine_onecycle_schedule
from optcore._piecewise import linear_onecycle_schedule as linear_onecycle_schedule
from optcore._piecewise import piecewise_constant_schedule as piecewise_constant_schedule
from optcore._piecewise import piecewise_interpolate_schedule as piecewise_interpolate_schedule
from optcore._polyak import polyak_sgd as polyak_sgd
from optcore._polyak import scale_by_polyak as scale_by_polyak
from optcore._radam import radam as radam
from optcore._radam import scale_by_radam as scale_by_radam
from optcore._repairs import ZeroNansState as ZeroNansState
from optcore._repairs import keep_params_nonnegative as keep_params_nonnegative
from optcore._repairs import nan_to_num as nan_to_num
from optcore._repairs import zero_nans as zero_nans
from optcore._rmsprop import ScaleByRmsState as ScaleByRmsState
from optcore._rmsprop import ScaleByRStdDevState as ScaleByRStdDevState
from optcore._rmsprop import rmsprop as rmsprop
from optcore._rmsprop import scale_by_rms as scale_by_rms
from optcore._rmsprop import scale_by_stddev as scale_by_stddev
from optcore._rows import OptimizerRow as OptimizerRow
from optcore._rprop import ScaleByRpropState as ScaleByRpropState
from optcore._rprop import rprop as rprop
from optcore._rprop import scale_by_rprop as scale_by_rprop
from optcore._scaling import identity as identity
from optcore._scaling import scale as scale
from optcore._scaling import scale_by_learning_rate as scale_by_learning_rate
from optcore._scaling import scale_by_schedule as scale_by_schedule
from optcore._schedule_free import ScheduleFreeState as ScheduleFreeState
from optcore._schedule_free import schedule_free as schedule_free
from optcore._schedule_free import schedule_free_eval_params as schedule_free_eval_params
from optcore._schedule_free import schedule_free_train_params as schedule_free_train_params
from optcore._schedule_free_rows import schedule_free_adamw as schedule_free_adamw
from optcore._schedule_free_rows import schedule_free_sgd as schedule_free_sgd
from optcore._schedules import constant_schedule as constant_schedule
from optcore._schedules import cosine_decay_schedule as cosine_decay_schedule
from optcore._schedules import exponential_decay as exponential_decay
from optcore._schedules import linear_schedule as linear_schedule
from optcore._schedules import polynomial_schedule as polynomial_schedule
from optcore._shampoo import ScaleByShampooState as ScaleByShampooState
from optcore._shampoo import scale_by_shampoo as scale_by_shampoo
from optcore._shampoo import shampoo as shampoo
from optcore._sign import ScaleByLionState as ScaleByLionState
from optcore._sign import lion as lion
from optcore._sign import scale_by_lion as scale_by_lion
from optcore._sign import scale_by_sign as scale_by_sign
from optcore._sign import sign_sgd as sign_sgd
from optcore._sign import signum as signum
from optcore._sm3 import ScaleBySM3State as ScaleBySM3State
from optcore._sm3 import scale_by_sm3 as scale_by_sm3
from optcore._sm3 import sm3 as sm3
from optcore._soap import ScaleBySoapState as ScaleBySoapState
from optcore._soap import scale_by_soap as scale_by_soap
from optcore._soap import soap as soap
from optcore._sophia import SophiaState as SophiaState
from optcore._sophia import hutchinson_estimator_diag_hessian as hutchinson_estimator_diag_hessian
from optcore._sophia import scale_by_sophia as scale_by_sophia
from optcore._sophia import sophia as sophia
from optcore._transform import EmptyState as EmptyState
from optcore._transform import GradientTransformation as GradientTransformation
from optcore._transform import ScheduleState as ScheduleState
from optcore._tree import ParamDict as ParamDict
from optcore._tree import describe as describe
from optcore._tree import map_tensors as map_tensors
from optcore._tree_math import acc_add as acc_add
from optcore._tree_math import acc_matmul as acc_matmul
from optcore._tree_math import acc_mul as acc_mul
from optcore._tree_math import tree_add as tree_add
from optcore._tree_math import tree_add_scalar_mul as tree_add_scalar_mul
from optcore._tree_math import tree_flatten_as_tuple as tree_flatten_as_tuple
from optcore._tree_math import tree_matmul as tree_matmul
from optcore._tree_math import tree_mul as tree_mul
from optcore._tree_math import tree_neg as tree_neg
from optcore._tree_math import tree_pos as tree_pos
from optcore._tree_math import tree_scalar_mul as tree_scalar_mul
from optcore._tree_math import tree_sub as tree_sub
from optcore._tree_math import tree_sub_scalar_mul as tree_sub_scalar_mul
from optcore._tree_math import tree_truediv as tree_truediv
from optcore._tree_math import tree_vdot_real as tree_vdot_real
from optcore._tree_math import tree_wait as tree_wait
from optcore._warmup import inverse_sqrt_schedule as inverse_sqrt_schedule
from optcore._warmup import join_schedules as join_schedules
from optcore._warmup import sgdr_schedule as sgdr_schedule
from optcore._warmup import warmup_constant_schedule as warmup_constant_schedule
from optcore._warmup import warmup_cosine_decay_schedule as warmup_cosine_decay_schedule
from optcore._warmup import warmup_exponential_decay_schedule as warmup_exponential_decay_schedule
from optcore._weight_decay import add_decayed_weights as add_decayed_weights
from optcore._yogi import scale_by_yogi as scale_by_yogi
from optcore._yogi import yogi as yogi
from optcore.func import FuncOptimizer as FuncOptimizer
from optcore.func import check_loss as check_loss

if TYPE_CHECKING:
    from optcore._backtracking import BacktrackingLinesearchInfo as BacktrackingLinesearchInfo
    from optcore._backtracking import (
        ScaleByBacktrackingLinesearchState as ScaleByBacktrackingLinesearchState,
    )
    from optcore._backtracking import (
        scale_by_backtracking_linesearch as scale_by_backtracking_linesearch,
    )
    from optcore._curvature import fisher_diag as fisher_diag
    from optcore._curvature import ggn_diag as ggn_diag
    from optcore._curvature import hessian_diag as hessian_diag
    from optcore._curvature import hvp as hvp
    from optcore._lbfgs import ScaleByLBFGSState as ScaleByLBFGSState
    from optcore._lbfgs import lbfgs as lbfgs
    from optcore._lbfgs import scale_by_lbfgs as scale_by_lbfgs
    from optcore._lbfgs_class import LBFGS as LBFGS
    from optcore._monitoring import MonitorState as MonitorState
    from optcore._monitoring import SnapshotState as SnapshotState
    from optcore._monitoring import measure_with_ema as measure_with_ema
    from optcore._monitoring import monitor as monitor
    from optcore._monitoring import snapshot as snapshot
    from optcore._optimizer import Optimizer as Optimizer
    from optcore._perturbations import Gumbel as Gumbel
    from optcore._perturbations import Normal as Normal
    from optcore._perturbations import make_fenchel_young_loss as make_fenchel_young_loss
    from optcore._perturbations import make_perturbed_fun as make_perturbed_fun
    from optcore._plateau import ReduceLROnPlateauState as ReduceLROnPlateauState
    from optcore._plateau import ReduceOnPlateau as ReduceOnPlateau
    from optcore._plateau import reduce_on_plateau as reduce_on_plateau
    from optcore._privacy import (
        differentially_private_aggregate as differentially_private_aggregate,
    )
    from optcore._privacy import per_example_global_norm_clip as per_example_global_norm_clip
    from optcore._privacy import per_example_layer_norm_clip as per_example_layer_norm_clip
    from optcore._projections import projection_box as projection_box
    from optcore._projections import projection_hypercube as projection_hypercube
    from optcore._projections import projection_l1_ball as projection_l1_ball
    from optcore._projections import projection_l1_sphere as projection_l1_sphere
    from optcore._projections import projection_l2_ball as projection_l2_ball
    from optcore._projections import projection_l2_sphere as projection_l2_sphere
    from optcore._projections import projection_linf_ball as projection_linf_ball
    from optcore._projections import projection_linf_sphere as projection_linf_sphere
    from optcore._projections import projection_non_negative as projection_non_negative
    from optcore._projections import projection_simplex as projection_simplex
    from optcore._proximal import keep_params_in as keep_params_in
    from optcore._proximal import prox_elastic_net as prox_elastic_net
    from optcore._proximal import prox_group_lasso as prox_group_lasso
    from optcore._proximal import prox_l1 as prox_l1
    from optcore._proximal import prox_non_negative_l1 as prox_non_negative_l1
    from optcore._proximal import proximal_step as proximal_step
    from optcore._reuse import value_and_grad_from_state as value_and_grad_from_state
    from optcore._sam import SAM as SAM
    from optcore._sam import SAMState as SAMState
    from optcore._sam import sam as sam
    from optcore._schedule_free_optim import ScheduleFreeAdamW as ScheduleFreeAdamW
    from optcore._schedule_free_optim import ScheduleFreeOptimizer as ScheduleFreeOptimizer
    from optcore._schedule_free_optim import ScheduleFreeSGD as ScheduleFreeSGD
    from optcore._zoom import ScaleByZoomLinesearchState as ScaleByZoomLinesearchState
    from optcore._zoom import ZoomLinesearchInfo as ZoomLinesearchInfo
    from optcore._zoom import scale_by_zoom_linesearch as scale_by_zoom_linesearch
    from optcore.optim import ADOPT as ADOPT
    from optcore.optim import ASGD as ASGD
    from optcore.optim import LARS as LARS
    from optcore.optim import MADGRAD as MADGRAD
    from optcore.optim import SGD as SGD
    from optcore.optim import SM3 as SM3
    from optcore.optim import SOAP as SOAP
    from optcore.optim import AdaBelief as AdaBelief
    from optcore.optim import AdaDelta as AdaDelta
    from optcore.optim import Adadelta as Adadelta
    from optcore.optim import Adafactor as Adafactor
    from optcore.optim import AdaGrad as AdaGrad
    from optcore.optim import Adagrad as Adagrad
    from optcore.optim import Adam as Adam
    from optcore.optim import AdaMax as AdaMax
    from optcore.optim import Adamax as Adamax
    from optcore.optim import AdamaxW as AdamaxW
    from optcore.optim import AdamW as AdamW
    from optcore.optim import Adan as Adan
    from optcore.optim import AdEMAMix as AdEMAMix
    from optcore.optim import AMSGrad as AMSGrad
    from optcore.optim import DAdaptAdamW as DAdaptAdamW
    from optcore.optim import Fromage as Fromage
    from optcore.optim import Lamb as Lamb
    from optcore.optim import Lion as Lion
    from optcore.optim import Muon as Muon
    from optcore.optim import NAdam as NAdam
    from optcore.optim import NAdamW as NAdamW
    from optcore.optim import NoisySGD as NoisySGD
    from optcore.optim import NovoGrad as NovoGrad
    from optcore.optim import OptimisticAdam as OptimisticAdam
    from optcore.optim import OptimisticGradientDescent as OptimisticGradientDescent
    from optcore.optim import PolyakSGD as PolyakSGD
    from optcore.optim import Prodigy as Prodigy
    from optcore.optim import RAdam as RAdam
    from optcore.optim import RMSProp as RMSProp
    from optcore.optim import RMSprop as RMSprop
    from optcore.optim import Rprop as Rprop
    from optcore.optim import Shampoo as Shampoo
    from optcore.optim import SignSGD as SignSGD
    from optcore.optim import Signum as Signum
    from optcore.optim import Sophia as Sophia
    from optcore.optim import Yogi as Yogi
    from optcore.optim import derive_class as derive_class
    from optcore.optim import from_torch as from_torch

__version__ = _version("optcore")

__all__ = [
    name
    for name, value in {**globals(), **_MODULE_OF}.items()
    if not name.startswith("_") and name != "TYPE_CHECKING" and not isinstance(value, _ModuleType)
]


def __getattr__(name: str) -> _Any:
    if name not in _MODULE_OF and name != "optim":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = import_module(f"{__name__}.{_MODULE_OF.get(name, name)}")
    value = getattr(module, name) if name in _MODULE_OF else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF} - {"TYPE_CHECKING"})
