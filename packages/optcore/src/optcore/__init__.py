# SPDX-License-Identifier: Apache-2.0
"""Composable, differentiable gradient transformations and optimizers for PyTorch.

Layout: `_transform` (what a transformation is, update modes, apply_updates), `_hyperparams` and
`_leafwise` (what formulas are made of), `_chain` (combinators), `_scaling`, `_weight_decay`,
`_moment_rules` (what Adam and its relatives share), then one file per optimizer or family (`_adam`,
`_momentum`, `_rmsprop`, `_sign`, ...), `_optimizers` (the table), `optim` (torch.optim classes
derived from it), `func` (FuncOptimizer). Everything public stands here.
"""

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
from optcore._adamax import scale_by_adamax as scale_by_adamax
from optcore._adan import ScaleByAdanState as ScaleByAdanState
from optcore._adan import adan as adan
from optcore._adan import scale_by_adan as scale_by_adan
from optcore._amsgrad import ScaleByAmsgradState as ScaleByAmsgradState
from optcore._amsgrad import amsgrad as amsgrad
from optcore._amsgrad import scale_by_amsgrad as scale_by_amsgrad
from optcore._asgd import ScaleByAsgdState as ScaleByAsgdState
from optcore._asgd import asgd as asgd
from optcore._asgd import scale_by_asgd as scale_by_asgd
from optcore._chain import chain as chain
from optcore._moment_rules import ScaleByAdamState as ScaleByAdamState
from optcore._momentum import TraceState as TraceState
from optcore._momentum import sgd as sgd
from optcore._momentum import trace as trace
from optcore._muon import ScaleByMuonState as ScaleByMuonState
from optcore._muon import muon as muon
from optcore._muon import scale_by_muon as scale_by_muon
from optcore._nadam import ScaleByNadamState as ScaleByNadamState
from optcore._nadam import nadam as nadam
from optcore._nadam import scale_by_nadam as scale_by_nadam
from optcore._novograd import ScaleByNovogradState as ScaleByNovogradState
from optcore._novograd import novograd as novograd
from optcore._novograd import scale_by_novograd as scale_by_novograd
from optcore._optimizers import OPTIMIZERS as OPTIMIZERS
from optcore._radam import radam as radam
from optcore._radam import scale_by_radam as scale_by_radam
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
from optcore._sign import ScaleByLionState as ScaleByLionState
from optcore._sign import lion as lion
from optcore._sign import scale_by_lion as scale_by_lion
from optcore._sign import scale_by_sign as scale_by_sign
from optcore._sign import sign_sgd as sign_sgd
from optcore._sign import signum as signum
from optcore._transform import EmptyState as EmptyState
from optcore._transform import GradientTransformation as GradientTransformation
from optcore._transform import ScheduleState as ScheduleState
from optcore._transform import apply_updates as apply_updates
from optcore._tree import ParamDict as ParamDict
from optcore._tree import map_tensors as map_tensors
from optcore._weight_decay import add_decayed_weights as add_decayed_weights
from optcore._yogi import scale_by_yogi as scale_by_yogi
from optcore._yogi import yogi as yogi
from optcore.func import FuncOptimizer as FuncOptimizer
from optcore.func import check_loss as check_loss
from optcore.optim import ASGD as ASGD
from optcore.optim import SGD as SGD
from optcore.optim import AdaBelief as AdaBelief
from optcore.optim import AdaDelta as AdaDelta
from optcore.optim import Adadelta as Adadelta
from optcore.optim import Adafactor as Adafactor
from optcore.optim import AdaGrad as AdaGrad
from optcore.optim import Adagrad as Adagrad
from optcore.optim import Adam as Adam
from optcore.optim import AdaMax as AdaMax
from optcore.optim import Adamax as Adamax
from optcore.optim import AdamW as AdamW
from optcore.optim import Adan as Adan
from optcore.optim import AMSGrad as AMSGrad
from optcore.optim import Lion as Lion
from optcore.optim import Muon as Muon
from optcore.optim import NAdam as NAdam
from optcore.optim import NovoGrad as NovoGrad
from optcore.optim import Optimizer as Optimizer
from optcore.optim import RAdam as RAdam
from optcore.optim import RMSProp as RMSProp
from optcore.optim import RMSprop as RMSprop
from optcore.optim import Rprop as Rprop
from optcore.optim import SignSGD as SignSGD
from optcore.optim import Signum as Signum
from optcore.optim import Yogi as Yogi
from optcore.optim import derive_class as derive_class

__version__ = "0.1.0"
