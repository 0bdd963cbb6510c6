# SPDX-License-Identifier: Apache-2.0
"""What ``torch.optim`` puts around ``step``, without its price where nobody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.optim import optimizer as torch_optimizer

Step = TypeVar("Step", bound=Callable[..., Any])


def watched(step: Step) -> Step:
    """``step`` with hooks and a record for profilers, as ``torch.optim.Optimizer`` wraps it.

    The wrapper of torch opens a record also where no profiler runs, which takes as long as the
    arithmetic of 50,000 parameters; here it is left out then. So observers of another thread see no
    record, and a hook that a closure registers is called from the next step on.
    """
    as_torch = torch.optim.Optimizer.profile_hook_step(step)

    @wraps(step)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        # a class that overrides step has torch's wrapper around its own, if nothing else
        outer = getattr(type(self).step, "__code__", None)
        if outer is not as_torch.__code__ and (torch.compiler.is_compiling() or _is_watched(self)):
            return as_torch(self, *args, **kwargs)
        return step(self, *args, **kwargs)

    wrapper.hooked = True  # or torch would wrap it
    return wrapper  # type: ignore[return-value]


def _is_watched(optimizer: torch.optim.Optimizer) -> bool:
    return bool(
        torch.autograd._profiler_enabled()
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
    )
