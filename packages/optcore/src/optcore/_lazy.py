# SPDX-License-Identifier: Apache-2.0
"""Public names that are imported when first used: a program needs few of them."""

MODULE_OF = {
    name: module
    for module, names in {
        "_backtracking": (
            "BacktrackingLinesearchInfo scale_by_backtracking_linesearch "
            "ScaleByBacktrackingLinesearchState"
        ),
        "_curvature": "fisher_diag ggn_diag hessian_diag hvp",
        "_lbfgs": "lbfgs scale_by_lbfgs ScaleByLBFGSState",
        "_lbfgs_class": "LBFGS",
        "_monitoring": "measure_with_ema monitor MonitorState snapshot SnapshotState",
        "_optimizer": "Optimizer",
        "_perturbations": "Gumbel make_fenchel_young_loss make_perturbed_fun Normal",
        "_plateau": "reduce_on_plateau ReduceLROnPlateauState ReduceOnPlateau",
        "_privacy": (
            "differentially_private_aggregate per_example_global_norm_clip "
            "per_example_layer_norm_clip"
        ),
        "_projections": (
            "projection_box projection_hypercube projection_l1_ball projection_l1_sphere "
            "projection_l2_ball projection_l2_sphere projection_linf_ball "
            "projection_linf_sphere projection_non_negative projection_simplex"
        ),
        "_proximal": (
            "keep_params_in prox_elastic_net prox_group_lasso prox_l1 prox_non_negative_l1 "
            "proximal_step"
        ),
        "_reuse": "value_and_grad_from_state",
        "_sam": "SAM sam SAMState",
        "_schedule_free_optim": "ScheduleFreeAdamW ScheduleFreeOptimizer ScheduleFreeSGD",
        "_zoom": "scale_by_zoom_linesearch ScaleByZoomLinesearchState ZoomLinesearchInfo",
        "optim": (
            "AdaBelief AdaDelta Adadelta Adafactor AdaGrad Adagrad Adam AdaMax Adamax "
            "AdamaxW AdamW Adan AdEMAMix ADOPT AMSGrad ASGD DAdaptAdamW derive_class "
            "from_torch Fromage Lamb LARS Lion MADGRAD Muon NAdam NAdamW NoisySGD NovoGrad "
            "OptimisticAdam OptimisticGradientDescent PolyakSGD Prodigy RAdam RMSProp "
            "RMSprop Rprop SGD Shampoo SignSGD Signum SM3 SOAP Sophia Yogi"
        ),
    }.items()
    for name in names.split()
}
