# SPDX-License-Identifier: Apache-2.0
"""A lasso solved by proximal gradient steps, differentiated through its fixed point."""

import torch

import optcore
import optdiff
from optdiff.implicit import custom_fixed_point


def problem():
    generator = torch.Generator().manual_seed(3)
    design = torch.randn(20, 6, generator=generator)
    truth = torch.tensor([1.5, 0.0, -2.0, 0.0, 0.7, 0.0])
    return design, design @ truth + 0.1 * torch.randn(20, generator=generator)


def ista(x, strength, design, targets):
    step = 1.0 / torch.linalg.eigvalsh(design.detach().T @ design.detach())[-1].item()
    return optcore.prox_l1(x - step * design.T @ (design @ x - targets), strength, step)


@custom_fixed_point(ista, solve=optdiff.linear_solve.solve_lu())
def lasso(init, strength, design, targets):
    x = torch.zeros(design.shape[1])
    for _ in range(3000):
        x = ista(x, strength, design, targets)
    return x


def test_derivatives_on_the_support_are_those_of_the_closed_form():
    design, targets = problem()
    strength = torch.tensor(4.0, requires_grad=True)
    x = lasso(None, strength, design, targets.requires_grad_())
    support = x.detach() != 0
    assert 0 < support.sum() < 6
    own, signs = design[:, support], x.detach().sign()[support]
    inverse = torch.linalg.inv(own.T @ own)
    # on the support x = (A^T A)^-1 (A^T y - lambda sign)
    torch.testing.assert_close(
        x[support], inverse @ (own.T @ targets - strength * signs), rtol=0, atol=1e-9
    )
    along = torch.linspace(-1, 2, 6)
    d_strength, d_targets = torch.autograd.grad((along * x).sum(), (strength, targets))
    assert abs(d_strength + (along[support] @ inverse @ signs)) <= 1e-9
    torch.testing.assert_close(d_targets, own @ inverse @ along[support], rtol=0, atol=1e-9)


def test_derivatives_equal_finite_differences():
    design, targets = problem()
    strength = torch.tensor(4.0, requires_grad=True)
    (found,) = torch.autograd.grad(lasso(None, strength, design, targets).square().sum(), strength)
    with torch.no_grad():
        ends = [lasso(None, strength + h, design, targets).square().sum() for h in (1e-4, -1e-4)]
    assert abs(found - (ends[0] - ends[1]) / 2e-4) <= 1e-5
