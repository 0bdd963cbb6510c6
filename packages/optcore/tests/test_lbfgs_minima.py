# SPDX-License-Identifier: Apache-2.0
"""L-BFGS reaches the minima that torch.optim and SciPy reach, and wastes no evaluation."""

import pytest
import torch

import optcore


def value_and_grad(f, params):
    leaves = {k: p.detach().requires_grad_() for k, p in params.items()}
    value = f(leaves)
    return value.detach(), dict(
        zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True)
    )


def quadratic(seed=0, n=20):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
    h = a.T @ a / n + 0.05 * torch.eye(n)
    return (lambda p: 0.5 * p["x"] @ h @ p["x"] - p["x"].sum()), {"x": torch.zeros(n)}


def rosenbrock(params):
    x = params["x"]
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def logistic():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(60, 8, generator=generator)
    labels = (features[:, 0] + torch.randn(60, generator=generator) > 0).to(features.dtype)

    def f(params):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(features @ params["x"], labels)
        return loss + 0.01 * params["x"].square().sum()

    return f, {"x": torch.zeros(8)}


PROBLEMS = {
    "quadratic": quadratic,
    "rosenbrock": lambda: (rosenbrock, {"x": torch.tensor([-1.2, 1.0, 0.8, -0.5])}),
    "logistic": logistic,
}


def minimise(f, params, tx, steps):
    state = tx.init(params)
    reuse = optcore.value_and_grad_from_state(f)
    for _ in range(steps):
        value, grad = reuse(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=f)
        params = optcore.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
@pytest.mark.parametrize(
    ("linesearch", "tolerance"),  # differences of values say less than slopes
    [("zoom", 1e-8), ("backtracking", 1e-6)],
)
def test_lbfgs_reaches_the_minimum_of_torch_and_scipy(problem, linesearch, tolerance):
    optimize = pytest.importorskip("scipy.optimize", reason="scipy is the reference")
    f, start = problem()
    params, _ = minimise(f, start, optcore.lbfgs(linesearch=linesearch), 80)
    x = start["x"].clone().requires_grad_()
    reference = torch.optim.LBFGS(
        [x], max_iter=300, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        reference.zero_grad()
        loss = f({"x": x})
        loss.backward()
        return loss

    reference.step(closure)

    def numpy_f(vector):
        value, grad = value_and_grad(f, {"x": torch.tensor(vector)})
        return value.item(), grad["x"].numpy()

    options = {"gtol": 1e-11, "ftol": 0, "maxiter": 1000}
    scipy_s = optimize.minimize(
        numpy_f, start["x"].numpy(), jac=True, method="L-BFGS-B", options=options
    )
    assert (params["x"] - x.detach()).abs().max() <= tolerance
    assert (params["x"] - torch.tensor(scipy_s.x)).abs().max() <= tolerance
    assert value_and_grad(f, params)[1]["x"].abs().max() <= tolerance


def test_every_evaluation_is_used():
    calls = []

    def counted(params):
        calls.append(None)
        return rosenbrock(params)

    tx = optcore.lbfgs()
    params = {"x": torch.tensor([-1.2, 1.0])}
    state, searched = tx.init(params), 0
    reuse = optcore.value_and_grad_from_state(counted)
    for _ in range(10):
        value, grad = reuse(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=counted)
        params = optcore.apply_updates(params, updates)
        searched += int(state[-1].info.num_linesearch_steps)
    assert len(calls) == 1 + searched


def test_state_survives_a_checkpoint(tmp_path):
    _, state = minimise(rosenbrock, {"x": torch.tensor([-1.2, 1.0])}, optcore.lbfgs(), 5)
    plain = [
        {k: v for k, v in state[-1]._asdict().items() if k != "info"},
        state[-1].info._asdict(),
    ]
    torch.save(plain, tmp_path / "a.pt")
    loaded = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.testing.assert_close(loaded, plain, rtol=0, atol=0)
