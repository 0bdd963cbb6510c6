# SPDX-License-Identifier: Apache-2.0
"""One row of the table: a transformation with hyperparameters to try, and what it promises."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec

import torch

from optcore._transform import GradientTransformation
from optcore._tree import path_to, tree_flatten, tree_unflatten

_Rest = ParamSpec("_Rest")

# What a transformation may raise when a check asks too much of it.
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,  # NotImplementedError too, and most of what torch raises
    TypeError,
    ValueError,
    copy.Error,
    pickle.PickleError,
)


class ConformanceError(AssertionError):
    """A transformation does not keep what its :class:`Case` promises."""


@dataclass(frozen=True, eq=False)
class Case:
    """A transformation to check, and what it promises.

    Every ``float`` among ``options`` (inside tuples and dicts too) is a hyperparameter that the
    checks also give as tensor, as schedule and as tree, unless ``static`` names its option. Options
    must differ from values at which the formula has a kink.

    Args:
        name: How errors call it.
        factory: Makes the transformation from keyword arguments.
        options: These arguments.
        static: Options whose floats must stay numbers.
        also_covers: Public names that this case exercises besides its factory.
        torch: The same optimizer of torch, called with the parameters and ``options``.
        optax: ``optax(optax_module, **options)`` makes the same transformation there.
        reference: A formula like those of :mod:`optcore.testing.reference`.
        seed: Of the parameters and gradients that the checks draw.
        device: Where these stand, and hyperparameters that are tensors.
        differentiable: Updates have first and second derivatives in gradients, parameters and
            hyperparameters. False only where the formula decides by Python on values.
        limit_at_zero: At an exactly zero gradient the first derivative is the limit for small
            gradients. False where there is no limit (ratios of norms): then it is finite.
        schedules: Each hyperparameter may be a schedule.
        per_leaf: Each leaf moves as if it were alone: no global norm, no step count of the whole.
        none_leaves: Takes gradients that are None.
        any_tree: Takes any tree of parameters, not only ``{"w": matrix, "b": vector}``.
        matrices: Takes parameters with two dimensions only.
        half: Gives finite numbers in float16.

    Example:
        >>> import optcore
        >>> case = Case("fast", optcore.adam, {"lr": 0.1, "betas": (0.5, 0.7)})
        >>> case.values()
        [0.1, 0.5, 0.7]
        >>> case.build([0.2, 0.6, 0.8]) == optcore.adam(lr=0.2, betas=(0.6, 0.8))
        True
    """

    name: str
    factory: Callable[..., GradientTransformation]
    options: Mapping[str, Any] = field(default_factory=dict)
    static: tuple[str, ...] = ()
    also_covers: tuple[str, ...] = ()
    torch: Callable[..., torch.optim.Optimizer] | None = None
    optax: Callable[..., Any] | None = None
    reference: Callable[..., torch.Tensor] | None = None
    seed: int = 0
    device: str | torch.device = "cpu"
    differentiable: bool = True
    limit_at_zero: bool = True
    schedules: bool = True
    per_leaf: bool = True
    none_leaves: bool = True
    any_tree: bool = True
    matrices: bool = False
    half: bool = True

    @property
    def covers(self) -> frozenset[str]:
        """The public names that this case exercises."""
        return frozenset({getattr(self.factory, "__name__", ""), *self.also_covers})

    def values(self) -> list[float]:
        """The numbers that may be tensors, schedules or trees, in the order :meth:`build` takes."""
        leaves, _ = tree_flatten(self._open())
        return [leaf for leaf in leaves if type(leaf) is float]

    def value_names(self) -> list[str]:
        """Where each of :meth:`values` stands among the options, as ``betas[0]``."""
        return [
            name + path_to(option, index).removeprefix("the root")
            for name, option in zip(self._open_names(), self._open(), strict=True)
            for index, leaf in enumerate(tree_flatten(option)[0])
            if type(leaf) is float
        ]

    def build(self, values: Sequence[Any] | None = None) -> GradientTransformation:
        """The transformation, with other values of its hyperparameters if given."""
        if values is None:
            return self.factory(**self.options)
        leaves, spec = tree_flatten(self._open())
        rest = iter(values)
        leaves = [next(rest) if type(leaf) is float else leaf for leaf in leaves]
        opened = dict(zip(self._open_names(), tree_unflatten(spec, leaves), strict=True))
        return self.factory(**{**self.options, **opened})

    def fail(self, check: str, expected: str, got: str, where: str = "") -> ConformanceError:
        """The error of a check, to be raised."""
        at = f", at {where}" if where else ""
        return ConformanceError(f"{self.name}: {check}: expected {expected}, got {got}{at}")

    def _open_names(self) -> list[str]:
        return [name for name in self.options if name not in self.static]

    def _open(self) -> list[Any]:
        return [self.options[name] for name in self._open_names()]


def reports_errors(
    check: Callable[Concatenate[Case, _Rest], None],
) -> Callable[Concatenate[Case, _Rest], None]:
    """Make a check that says who, what and where also if the transformation raises an error."""

    @functools.wraps(check)
    def reporting(case: Case, *args: _Rest.args, **kwargs: _Rest.kwargs) -> None:
        try:
            check(case, *args, **kwargs)
        except ConformanceError:
            raise
        except ERRORS as error:
            who, got = check.__name__.lstrip("_"), f"{type(error).__name__}: {error}"
            raise case.fail(who, "no error", got) from error

    return reporting
