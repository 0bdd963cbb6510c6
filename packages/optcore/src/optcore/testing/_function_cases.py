# SPDX-License-Identifier: Apache-2.0
"""The rows of functions that are no transformations, each inside one that calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import optcore
from optcore._tree import tree_flatten, tree_unflatten
from optcore.testing._case import Case


def _objective(params: Any) -> Any:
    leaves = [leaf for leaf in tree_flatten(params)[0] if leaf is not None]
    return sum((2 - leaf.double().cos()).square().sum() for leaf in leaves) + torch.zeros(())


def _likelihood(params: Any, example: torch.Tensor) -> Any:
    return (1 + example) * _objective(params)


def _outputs(params: Any) -> Any:
    leaves = [leaf for leaf in tree_flatten(params)[0] if leaf is not None]
    return torch.stack([leaf.double().sin().sum() for leaf in [*leaves, torch.ones(1)]])


def _curved(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.square().sum() + outputs.sum().cos()


def _hvp(params: Any) -> Any:
    return optcore.hvp(_objective, params, optcore.map_tensors(torch.cos, params))


def _hessian(params: Any) -> Any:
    return optcore.hessian_diag(_objective, params)


def _gauss_newton(params: Any) -> Any:
    return optcore.ggn_diag(_outputs, _curved, params)


def _fisher(params: Any) -> Any:
    return optcore.fisher_diag(_likelihood, params, torch.tensor([0.1, -0.4, 0.3]))


def _clipped(params: Any) -> Any:
    return optcore.per_example_global_norm_clip(_examples(params), 1.5)[0]


def _layer_clipped(params: Any) -> Any:
    return optcore.per_example_layer_norm_clip(_examples(params), 1.5, uniform=False)[0]


def _examples(params: Any) -> Any:
    return optcore.map_tensors(lambda p: torch.stack([p.sin(), 0.3 * p, p.cos()]), params)


def _perturbed(params: Any) -> Any:
    smooth = optcore.make_perturbed_fun(torch.sin, 3, sigma=0.5, noise=optcore.Normal())
    return optcore.map_tensors(lambda p: smooth(7, p), params)


def _largest(scores: torch.Tensor) -> torch.Tensor:
    return scores.logsumexp(0)


def _fenchel_young(params: Any) -> Any:
    loss = optcore.make_fenchel_young_loss(_largest)

    def of(p: torch.Tensor) -> torch.Tensor:
        scores = torch.stack([p.sin(), 0.3 * p, p.cos()], -1)
        return loss(scores, torch.stack([p, 1 - p, 0 * p], -1))

    return optcore.map_tensors(of, params)


def _init(params: Any, *, function: Any) -> Any:
    return optcore.EmptyState()


def _update(
    updates: Any, state: Any, params: Any, *, inplace: bool, function: Callable[[Any], Any]
) -> Any:
    grads, spec = tree_flatten(updates)
    values, _ = tree_flatten(function(params))
    pairs = zip(grads, values, strict=True)
    scaled = [None if g is None else (g * v).to(g.dtype) for g, v in pairs]
    return tree_unflatten(spec, scaled), state


def _times(function: Callable[[Any], Any]) -> optcore.GradientTransformation:
    """Multiplies gradients by what a function makes of the parameters."""
    static = {"function": function}
    return optcore.GradientTransformation(_init, _update, static=static, needs_params=True)


FUNCTIONS: tuple[Case, ...] = tuple(
    Case(
        name,
        _times,
        {"function": function},
        also_covers=(name,),
        differentiable=name != "make_perturbed_fun",  # its derivative is an estimate by samples
        per_leaf=False,
    )
    for name, function in (
        ("hvp", _hvp),
        ("hessian_diag", _hessian),
        ("ggn_diag", _gauss_newton),
        ("fisher_diag", _fisher),
        ("per_example_global_norm_clip", _clipped),
        ("per_example_layer_norm_clip", _layer_clipped),
        ("make_perturbed_fun", _perturbed),
        ("make_fenchel_young_loss", _fenchel_young),
    )
)
