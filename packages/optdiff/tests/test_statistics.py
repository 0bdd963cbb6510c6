# SPDX-License-Identifier: Apache-2.0
"""What the node of a solve tells of how it went."""

import pytest
import torch

import optdiff
from optdiff import linear_solve, minimize, root


def theta():
    return torch.tensor([4.0, 9.0], requires_grad=True, dtype=torch.float64)


def cube(x, theta):
    return x**3 - theta


@optdiff.custom_root(cube, solve=linear_solve.solve_gmres())
def cube_root(init, theta):
    return root.newton(cube, torch.ones_like(theta), theta).solution


def numbers(node):
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in node.statistics.items()
    }


def test_a_solve_tells_of_its_iterations_before_any_backward_pass():
    told = numbers(cube_root(None, theta()).grad_fn)
    assert told["by"] == "custom_root"
    assert told["linear solver"] == "gmres"
    assert told["root.newton: solves"] == 1
    expected = root.newton(cube, torch.ones(2, dtype=torch.float64), theta().detach())
    assert told["root.newton: iterations"] == expected.iterations
    assert told["root.newton: residual"] == expected.residual
    assert told["root.newton: converged"] is True
    assert told["gmres: solves"] == expected.iterations  # one in each step of Newton
    assert not [name for name in told if name.startswith("backward")]


def test_a_backward_pass_adds_its_own():
    solution = cube_root(None, theta())
    solution.sum().backward()
    told = numbers(solution.grad_fn)
    assert told["backward gmres: solves"] == 1
    assert told["backward gmres: iterations"] == 2
    assert told["backward gmres: converged"] is True


def test_the_last_backward_pass_counts():
    solution = cube_root(None, theta())
    for _ in range(2):
        solution.sum().backward(retain_graph=True)
    assert numbers(solution.grad_fn)["backward gmres: solves"] == 1


def test_a_solve_that_has_not_converged_says_so():
    objective = lambda x, theta: ((x - theta) ** 2).sum()  # noqa: E731

    @optdiff.custom_root(torch.func.grad(objective))
    def argmin(init, theta):
        options = {"stepsize": 1e-3, "maxiter": 3, "on_failure": "ignore"}
        return minimize.gradient_descent(
            objective, torch.zeros_like(theta), theta, **options
        ).solution

    told = numbers(argmin(None, theta()).grad_fn)
    assert told["gradient_descent: converged"] is False
    assert told["gradient_descent: iterations"] == 3
    assert told["gradient_descent: residual"] > 1


@pytest.mark.parametrize("call", [cube_root, torch.vmap(cube_root, in_dims=(None, 0))])
def test_a_batch_tells_its_worst(call):
    one = numbers(cube_root(None, theta()).grad_fn)
    many = numbers(call(None, torch.stack([theta(), theta()])).grad_fn)
    assert many["root.newton: iterations"] == one["root.newton: iterations"]
    assert many["root.newton: converged"] is True


def test_a_linear_solve_tells_of_itself():
    A = torch.tensor([[2.0, 0.0], [0.0, 4.0]], requires_grad=True)
    x = linear_solve.solve_cg()(A, torch.ones(2))
    told = numbers(x.grad_fn)
    assert (told["by"], told["cg: iterations"]) == ("solve_cg", 2)


def test_statistics_keep_no_graph_and_change_no_derivative():
    t = theta()
    solution = cube_root(None, t)
    (first,) = torch.autograd.grad(solution.sum(), t, create_graph=True)
    values = [*solution.grad_fn.statistics.values()]
    assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in values)
    (second,) = torch.autograd.grad(first.sum(), t)
    torch.testing.assert_close(first, t ** (-2 / 3) / 3)
    torch.testing.assert_close(second, -2 / 9 * t ** (-5 / 3))


@pytest.mark.parametrize(
    ("method", "directions", "evaluations"),
    [
        ("naive", {"samples": 3}, 4),
        ("forward", {"samples": 3}, 4),
        ("antithetic", {"samples": 3}, 7),
        ("finite_difference", {"coordinates": 2}, 5),
    ],
)
def test_an_estimate_tells_its_method_and_cost(method, directions, evaluations):
    normal = torch.distributions.Normal(0.0, 1.0)
    calls = []

    @optdiff.zero_order(normal, method=method, num_samples=3, vectorize=False)
    def value(theta):
        calls.append(theta)
        return (theta**2).sum()

    node = value(theta()).grad_fn
    assert node.statistics == {
        "by": "zero_order",
        "method": method,
        **directions,
        "evaluations": evaluations,
    }
    assert len(calls) == evaluations
