# SPDX-License-Identifier: Apache-2.0
"""What the Meta classes say about themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any


def documentation(name: str, class_name: str, factory: Callable[..., Any]) -> str | None:
    """The documentation of a Meta class, out of that of the factory behind it.

    Args:
        name: Of the factory in optcore.
        class_name: Of the Meta class.
        factory: Makes the transformation; None is given back where it has no documentation, as
            under ``python -OO``.
    """
    doc = inspect.getdoc(factory)
    if doc is None:
        return None
    sections = dict(re.findall(r"^(\w+):\n((?: {4}.*\n|\n)+)", f"{doc}\n", re.MULTILINE))
    stops = sections.get("Differentiable", "").rstrip()
    return _TEMPLATE.format(
        name=name,
        cls=class_name,
        summary=doc.splitlines()[0],
        args=sections["Args"].rstrip(),
        stops=f"\n{stops}" if stops else "",
        reference=sections["Reference"].rstrip(),
        told=_TOLD.get(name, ""),
    )


# what the step of an example has to be told beside the loss
_TOLD = {"sophia": ', obj_fn=lambda params: (params["weight"] - 3).square().sum()'}

_TEMPLATE = """Differentiable steps of :func:`optcore.{name}` on the parameters of a module.

{summary}
What a step does to the module: :class:`MetaOptimizer`.

Args:
    module: The module to optimize.
{args}
    first_order: Take the inner gradients as constants (FOMAML).

Differentiable:
    As :func:`optcore.{name}`, also in hyperparameters that are tensors.{stops}

Raises:
    TypeError: ``module`` is no module; as :func:`optcore.{name}`.
    ValueError: No parameter of the module requires grad; as :func:`optcore.{name}`.

Example:
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> rate = torch.tensor(0.1, requires_grad=True)
    >>> opt = {cls}(net, lr=rate)
    >>> opt.step((net.weight - 3).square().sum(){told})
    >>> torch.autograd.grad(net.weight.sum(), rate)[0].shape
    torch.Size([])

Reference:
{reference}
"""
