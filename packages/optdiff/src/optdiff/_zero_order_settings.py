# SPDX-License-Identifier: Apache-2.0
"""The options of a zero-order estimate, and what is refused of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal, TypeAlias, get_args

import torch

from optcore import describe
from optdiff._directions import Samplable, SampleFunc, check_spherical, sampler
from optdiff._tracking import is_tracked, is_wrapped
from optdiff._trees import Tree, tree_leaves

Method: TypeAlias = Literal["naive", "forward", "antithetic", "finite_difference"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class Settings:
    """How to estimate; :func:`optdiff.zero_order` says what each of them means."""

    who: str
    sample: SampleFunc | None
    method: Method
    num_samples: int
    generator: torch.Generator | None
    chunk_size: int | None
    vectorize: bool
    rank_shaping: bool
    baseline: Literal["mean"] | float | None
    orthogonal: bool


def check_settings(
    who: str,
    distribution: SampleFunc | Samplable | None,
    method: str,
    num_samples: int,
    generator: torch.Generator | None,
    chunk_size: int | None,
    vectorize: bool,
    rank_shaping: bool,
    baseline: Literal["mean"] | float | None,
    orthogonal: bool,
) -> Settings:
    """The settings of :func:`zero_order`, or its errors."""
    sample = None if distribution is None else sampler(who, distribution)
    if not isinstance(method, str) or method not in METHODS:
        got = repr(method) if isinstance(method, str) else describe(method)
        raise ValueError(f"{who}: expected method in {METHODS}, got {got}")
    if distribution is None and method != "finite_difference":
        raise TypeError(
            f"{who}: expected a distribution, got None; only method='finite_difference' needs none"
        )
    _check_count(who, "num_samples", num_samples)
    if chunk_size is not None:
        _check_count(who, "chunk_size", chunk_size)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"{who}: expected a torch.Generator, got {describe(generator)}")
    flags = {"vectorize": vectorize, "rank_shaping": rank_shaping, "orthogonal": orthogonal}
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{who}: expected {name} as a bool, got {describe(flag)}")
    if method == "finite_difference" and (rank_shaping or orthogonal):
        raise ValueError(
            f"{who}: expected no rank_shaping and no orthogonal with method='finite_difference', "
            "got one; they are for random directions"
        )
    if rank_shaping and method != "antithetic" and num_samples < 2:
        raise ValueError(
            f"{who}: expected num_samples >= 2 for rank_shaping, got {num_samples}; draw more, or "
            "take method='antithetic', which ranks two values a sample"
        )
    if baseline is not None:
        _check_baseline(who, baseline, method, num_samples, rank_shaping)
    if orthogonal and distribution is not None:
        check_spherical(who, distribution)
    return Settings(
        who, sample, method, num_samples, generator, chunk_size, vectorize, rank_shaping, baseline,
        orthogonal,
    )  # fmt: skip


def _check_count(who: str, name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{who}: expected {name} as an int, got {describe(count)}")
    if count < 1:
        raise ValueError(f"{who}: expected {name} >= 1, got {count}")


def _check_baseline(
    who: str, baseline: object, method: str, num_samples: int, rank_shaping: bool
) -> None:
    named = isinstance(baseline, str) and baseline == "mean"
    number = isinstance(baseline, Real) and not isinstance(baseline, bool)
    if not named and not (number and math.isfinite(float(baseline))):
        got = repr(baseline) if isinstance(baseline, (str, Real)) else describe(baseline)
        raise ValueError(f"{who}: expected baseline as 'mean' or a finite number, got {got}")
    if method != "naive" or rank_shaping:
        raise ValueError(
            f"{who}: expected a baseline with method='naive' and without rank_shaping only, got "
            f"method={method!r}, rank_shaping={rank_shaping}; the others have theirs"
        )
    if named and num_samples < 2:
        raise ValueError(
            f"{who}: expected num_samples >= 2 for baseline='mean', got {num_samples}; draw more, "
            "or give the baseline as a number"
        )


def check_sigma(who: str, sigma: float | Tree) -> None:
    """Refuse steps that are not positive.

    Raises:
        TypeError: Not a number, floating tensor or tree of such.
        ValueError: Not positive and finite, or a tensor that requires grad or is of a transform.
    """
    leaves = tree_leaves(sigma)
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            if is_tracked(leaf):
                raise ValueError(
                    f"{who}: expected sigma without a gradient, got {describe(leaf)} that requires "
                    "grad; detach it"
                )
            if is_wrapped(leaf):
                raise ValueError(
                    f"{who}: expected sigma from outside torch.func transforms, got "
                    f"{describe(leaf)} of one; loop over its values"
                )
            if not ((leaf > 0) & (leaf < math.inf)).all():
                raise ValueError(
                    f"{who}: expected sigma > 0 and finite, got {describe(leaf)} with others"
                )
        elif not isinstance(leaf, Real) or isinstance(leaf, bool):
            raise TypeError(
                f"{who}: expected sigma as a number, floating tensor or tree of such, got "
                f"{describe(leaf)}"
            )
        elif not 0 < leaf < math.inf:
            raise ValueError(f"{who}: expected sigma > 0 and finite, got {leaf}")
    if not leaves:
        raise TypeError(f"{who}: expected sigma as a number, got an empty {describe(sigma)}")
