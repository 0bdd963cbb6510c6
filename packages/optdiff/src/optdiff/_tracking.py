# SPDX-License-Identifier: Apache-2.0
"""What a derivative may be taken in."""

import torch


def is_tracked(tensor: torch.Tensor) -> bool:
    """Whether a derivative in the tensor may be asked for, by autograd or torch.func."""
    functorch = torch._C._functorch  # torch.func has no public way to look below a transform
    while not tensor.requires_grad and functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.requires_grad
