# SPDX-License-Identifier: Apache-2.0
r"""DiCE: the value of what was sampled, with all its derivatives in the policy.

Foerster et al., 2018, arXiv:1802.05098. What was sampled does not depend on the policy
:math:`\theta` by any formula; its chance does. The magic box (equation 5 of the paper)

.. math::
    \square(x) = \exp\bigl(x - \mathrm{stop}(x)\bigr)

is one, and has the derivatives of a likelihood with logarithm :math:`x`. A reward :math:`r_t` is
due to all moves up to it, so that the objective of rewards with a discount :math:`\gamma` and a
baseline :math:`b_t`, which takes noise away and must not depend on the move, is

.. math::
    \sum_t \gamma^t \Bigl(\square\Bigl(\sum_{s \le t} \log p_s\Bigr) r_t
        + \bigl(1 - \square(\log p_t)\bigr)\, b_t\Bigr) .

Its value is that of the discounted rewards, and its derivatives of every order are in expectation
those of the expected value.
"""

from __future__ import annotations

import torch
from torch import Tensor


def magic_box(x: Tensor) -> Tensor:
    """One, whose derivatives are those of a likelihood with logarithm ``x``."""
    return (x - x.detach()).exp()


def dice(
    log_probs: Tensor, rewards: Tensor, baseline: Tensor | float, discount: float = 1.0
) -> Tensor:
    """DiCE objective of episodes ``(..., moves)``.

    Args:
        log_probs: Of the moves; of those that several players make together, the sum.
        rewards: What the moves earn.
        baseline: Guess of what is earned from a move on, known before the move, in units of the
            time of that move.
        discount: What a reward is worth that comes a move later.
    """
    discounts = discount ** torch.arange(rewards.shape[-1], dtype=rewards.dtype)
    boxed = magic_box(log_probs.cumsum(-1)) * rewards + (1 - magic_box(log_probs)) * baseline
    return (discounts * boxed).sum(-1)
