# SPDX-License-Identifier: Apache-2.0
"""What a class cannot do group by group, because it looks at all parameters together."""

from __future__ import annotations

from optcore._transform import GradientTransformation

_WHOLE = {
    "scale_by_polyak": "the gap of the whole loss belongs to the norm of the whole gradient",
    "normalize": "it divides by the norm of all gradients",
    "hutchinson_estimator_diag_hessian": "obj_fn is a function of all parameters",
}


def check_one_group(who: str, transformation: GradientTransformation, index: int) -> None:
    """Refuse a second group of parameters where a step of each on its own would be another step.

    Raises:
        ValueError: It is the second, and some part of the transformation looks at all of them.
    """
    if not index:
        return
    for part in transformation._all():
        why = _WHOLE.get(part._name)
        if why is not None:
            raise ValueError(
                f"{who}: expected one group of parameters, got group {index}: of {part._name}, "
                f"{why}; put them all into one group, with hyperparameters by place in it, as "
                "lr={0: 0.1, 1: 0.01}"
            )
