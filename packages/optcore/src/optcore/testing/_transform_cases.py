# SPDX-License-Identifier: Apache-2.0
"""The rows of transformations that are no optimizers by themselves."""

from __future__ import annotations

from typing import Any

import optcore
from optcore.testing._case import Case

_INF = float("inf")
_WHOLE = {"per_leaf": False}  # looks at all leaves, or counts steps of the whole
_RATIO = {"limit_at_zero": False}  # of norms: no limit at zero gradients


def _named(name: str) -> Any:
    """The transformation of optax of that name, with the same options."""

    def make(optax: Any, **options: Any) -> Any:
        return getattr(optax, name)(**options)

    return make


def _optax_rms(name: str) -> Any:
    def make(optax: Any, *, decay: float, initial_scale: float, eps: float) -> Any:
        return getattr(optax, name)(decay, eps, initial_scale, eps_in_sqrt=False)

    return make


def _optax_rss(optax: Any, *, initial_accumulator_value: float, eps: float, eps_root: float) -> Any:
    return optax.scale_by_rss(initial_accumulator_value, eps_root)


def _optax_trust(optax: Any, *, min_norm: float, trust_coefficient: float, eps: float) -> Any:
    return optax.scale_by_trust_ratio(min_norm, trust_coefficient, eps)


def _halved(count: Any) -> Any:
    return 0.5 / (1 + count)


def _eased(lr: Any) -> optcore.GradientTransformation:
    return optcore.scale_by_schedule(optcore.exponential_decay(lr, 2, 0.7))


def _tripled(update: Any, param: Any) -> Any:
    return 3 * update


def _cubed(updates: Any, params: Any) -> Any:
    return optcore.map_tensors(lambda u: u**3, updates)


def _reweighted(grad: Any) -> Any:
    return 0.5 * grad


def _clip_tree(**options: float) -> optcore.GradientTransformation:
    return optcore.clip_by_global_norm(options)


TRANSFORMS: tuple[Case, ...] = (
    Case("identity", optcore.identity, optax=_named("identity")),
    Case("scale", optcore.scale, {"step_size": -0.7}, optax=_named("scale")),
    Case(
        "scale_by_learning_rate",
        optcore.scale_by_learning_rate,
        {"lr": 0.3},
        optax=lambda optax, lr: optax.scale_by_learning_rate(lr),
    ),
    Case(
        "scale_by_learning_rate-up", optcore.scale_by_learning_rate, {"lr": 0.3, "flip_sign": False}
    ),
    Case(
        "scale_by_schedule",
        optcore.scale_by_schedule,
        {"step_size_fn": _halved},
        optax=_named("scale_by_schedule"),
        **_WHOLE,
    ),
    Case("scale_by_schedule-learned", _eased, {"lr": 0.3}, schedules=False, **_WHOLE),
    Case("set_to_zero", optcore.set_to_zero, optax=_named("set_to_zero")),
    Case(
        "add_decayed_weights",
        optcore.add_decayed_weights,
        {"weight_decay": 0.3},
        optax=_named("add_decayed_weights"),
    ),
    Case("trace", optcore.trace, {"decay": 0.7}, optax=_named("trace")),
    Case("trace-nesterov", optcore.trace, {"decay": 0.7, "nesterov": True}, optax=_named("trace")),
    Case("trace-dampening", optcore.trace, {"decay": 0.7, "dampening": 0.4}),
    Case("trace-growing", optcore.trace, {"decay": 1.1}, optax=_named("trace")),
    Case("ema", optcore.ema, {"decay": 0.7}, optax=_named("ema")),
    Case("ema-biased", optcore.ema, {"decay": 0.7, "debias": False}, optax=_named("ema")),
    Case("add_noise", optcore.add_noise, {"eta": 0.4, "gamma": 0.5, "seed": 3}, **_WHOLE),
    # --- the rules of optimizers
    Case(
        "scale_by_adam",
        optcore.scale_by_adam,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3, "eps_root": 1e-2},
        optax=_named("scale_by_adam"),
    ),
    Case(
        "scale_by_adamax",
        optcore.scale_by_adamax,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3},
        optax=_named("scale_by_adamax"),
    ),
    Case(
        "scale_by_amsgrad",
        optcore.scale_by_amsgrad,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3, "eps_root": 1e-2},
    ),
    Case(
        "scale_by_nadam",
        optcore.scale_by_nadam,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3, "momentum_decay": 0.3},
    ),
    Case(
        "scale_by_radam",
        optcore.scale_by_radam,
        {"b1": 0.6, "b2": 0.99, "eps": 1e-3, "eps_root": 1e-2, "threshold": 4.0},
        static=("threshold",),
    ),
    Case(
        "scale_by_radam-corrected",
        optcore.scale_by_radam,
        {
            "b1": 0.6,
            "b2": 0.9,
            "eps": 1e-3,
            "eps_root": 1e-2,
            "threshold": 4.5,
            "correct_eps": True,
        },
        static=("threshold",),
        optax=lambda optax, correct_eps, **options: optax.scale_by_radam(**options),
    ),
    Case(
        "scale_by_belief",
        optcore.scale_by_belief,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3, "eps_root": 1e-2},
        optax=_named("scale_by_belief"),
    ),
    Case(
        "scale_by_yogi",
        optcore.scale_by_yogi,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-2, "eps_root": 1e-3, "initial_accumulator_value": 0.2},
        static=("initial_accumulator_value",),
        optax=_named("scale_by_yogi"),
    ),
    Case(
        "scale_by_adan",
        optcore.scale_by_adan,
        {"b1": 0.6, "b2": 0.7, "b3": 0.8, "eps": 1e-3, "eps_root": 1e-3},
        optax=_named("scale_by_adan"),
    ),
    Case(
        "scale_by_novograd",
        optcore.scale_by_novograd,
        {"b1": 0.6, "b2": 0.7, "eps": 1e-3, "eps_root": 1e-3, "weight_decay": 0.1},
        optax=_named("scale_by_novograd"),
    ),
    Case(
        "scale_by_rms",
        optcore.scale_by_rms,
        {"decay": 0.6, "eps": 1e-2, "initial_scale": 0.2},
        static=("initial_scale",),
        optax=_optax_rms("scale_by_rms"),
    ),
    Case("scale_by_rms-root", optcore.scale_by_rms, {"decay": 0.6, "eps": 1e-2, "eps_root": 0.1}),
    Case(
        "scale_by_stddev",
        optcore.scale_by_stddev,
        {"decay": 0.6, "eps": 1e-2, "initial_scale": 0.2},
        static=("initial_scale",),
        optax=_optax_rms("scale_by_stddev"),
    ),
    Case(
        "scale_by_stddev-root",
        optcore.scale_by_stddev,
        {"decay": 0.6, "eps": 1e-2, "eps_root": 0.1},
    ),
    Case(
        "scale_by_rss",
        optcore.scale_by_rss,
        {"initial_accumulator_value": 0.1, "eps": 0.0, "eps_root": 1e-7},
        static=("initial_accumulator_value",),
        optax=_optax_rss,
    ),
    Case(
        "scale_by_rss-decay", optcore.scale_by_rss, {"eps": 1e-2, "eps_root": 0.1, "lr_decay": 0.3}
    ),
    Case("scale_by_adadelta", optcore.scale_by_adadelta, {"rho": 0.6, "eps": 1e-2}),
    Case("scale_by_rprop", optcore.scale_by_rprop, {"lr": 0.02}, static=("lr",)),
    Case(
        "scale_by_asgd", optcore.scale_by_asgd, {"lr": 0.2, "lambd": 0.1, "alpha": 0.6, "t0": 1.0}
    ),
    Case(
        "scale_by_adafactor",
        optcore.scale_by_adafactor,
        {"lr": 0.2, "beta2_decay": -0.5, "eps": (1e-3, 0.1), "d": 0.5, "weight_decay": 0.1},
        static=("eps", "d"),
    ),
    Case(
        "scale_by_muon",
        optcore.scale_by_muon,
        {"momentum": 0.6, "ns_dtype": None},
        matrices=True,
    ),
    Case(
        "scale_by_lion",
        optcore.scale_by_lion,
        {"b1": 0.6, "b2": 0.7},
        optax=_named("scale_by_lion"),
    ),
    Case(
        "scale_by_sm3",
        optcore.scale_by_sm3,
        {"b1": 0.6, "b2": 0.8, "eps": 1e-2},
        optax=_named("scale_by_sm3"),
    ),
    # without its line search, which wants a function to evaluate and decides in Python
    Case(
        "lbfgs",
        optcore.lbfgs,
        {"lr": 0.1, "memory_size": 2, "linesearch": None},
        **_RATIO,
        **_WHOLE,
    ),
    Case("scale_by_lbfgs", optcore.scale_by_lbfgs, {"memory_size": 2}, **_RATIO, **_WHOLE),
    Case("scale_by_sign", optcore.scale_by_sign, optax=_named("scale_by_sign")),
    # --- norms and clipping
    Case("clip", optcore.clip, {"max_delta": 0.45}, optax=_named("clip")),
    Case(
        "clip_by_global_norm",
        optcore.clip_by_global_norm,
        {"max_norm": 0.45},
        optax=_named("clip_by_global_norm"),
        **_WHOLE,
    ),
    Case(
        "clip_by_global_norm-not-reached",
        optcore.clip_by_global_norm,
        {"max_norm": 450.0},
        optax=_named("clip_by_global_norm"),
        **_WHOLE,
    ),
    Case(
        "clip_by_global_norm-tree",
        _clip_tree,
        {"w": 0.45, "b": 0.31},
        also_covers=("clip_by_global_norm",),
        any_tree=False,
        **_WHOLE,
    ),
    *(
        Case(
            f"clip_grad_norm-{order:g}",
            optcore.clip_grad_norm,
            {"max_norm": 0.45, "norm_type": order},
            static=("norm_type",),
            **_WHOLE,
        )
        for order in (1.0, 2.0, 3.0, _INF)
    ),
    Case(
        "clip_by_block_rms",
        optcore.clip_by_block_rms,
        {"threshold": 0.45},
        optax=_named("clip_by_block_rms"),
    ),
    Case("adaptive_grad_clip", optcore.adaptive_grad_clip, {"clipping": 0.3, "eps": 0.05}),
    Case(
        "adaptive_grad_clip-axis",
        optcore.adaptive_grad_clip,
        {"clipping": 0.3, "eps": 0.05, "axis": -1},
        any_tree=False,
    ),
    Case("centralize", optcore.centralize),
    Case("normalize", optcore.normalize, **_RATIO, **_WHOLE),
    Case(
        "normalize_by_update_norm",
        optcore.normalize_by_update_norm,
        {"scale_factor": 0.8, "eps": 0.2},
        optax=_named("normalize_by_update_norm"),
        **_WHOLE,
    ),
    Case(
        "scale_by_trust_ratio",
        optcore.scale_by_trust_ratio,
        {"min_norm": 0.0, "trust_coefficient": 0.4, "eps": 0.3},
        static=("min_norm",),
        optax=_optax_trust,
        **_RATIO,
    ),
    Case(
        "scale_by_trust_ratio-plain",
        optcore.scale_by_trust_ratio,
        {"trust_coefficient": 0.4},
        **_RATIO,
    ),
    Case(
        "scale_by_trust_ratio-bounded",
        optcore.scale_by_trust_ratio,
        {"min_norm": 2.2, "trust_coefficient": 0.4, "eps": 0.3},
        optax=_optax_trust,
    ),
    Case(
        "scale_by_param_block_norm",
        optcore.scale_by_param_block_norm,
        {"min_scale": 0.4},
        optax=_named("scale_by_param_block_norm"),
    ),
    Case(
        "scale_by_param_block_rms",
        optcore.scale_by_param_block_rms,
        {"min_scale": 0.4},
        optax=_named("scale_by_param_block_rms"),
    ),
    # --- repairs and functions of the user
    Case("zero_nans", optcore.zero_nans, optax=_named("zero_nans")),
    Case("nan_to_num", optcore.nan_to_num),
    Case(
        "keep_params_nonnegative",
        optcore.keep_params_nonnegative,
        optax=_named("keep_params_nonnegative"),
    ),
    Case("register_hook", optcore.register_hook, {"hook": optcore.zero_nan_hook}),
    Case("stateless", optcore.stateless, {"f": _cubed}, none_leaves=True),
    Case("stateless_with_tree_map", optcore.stateless_with_tree_map, {"f": _tripled}),
)
