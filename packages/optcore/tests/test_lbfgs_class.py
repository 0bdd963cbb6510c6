# SPDX-License-Identifier: Apache-2.0
"""The class LBFGS against torch.optim.LBFGS, its state, its stops and its errors."""

import copy
import math
import pickle
import re

import pytest
import torch

import optcore


def problem():
    """A strictly convex function of two parameters."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(40, 6, generator=generator)
    labels = (features.sum(1) + torch.randn(40, generator=generator) > 0).to(features.dtype)
    params = [torch.nn.Parameter(torch.zeros(3, 2)), torch.nn.Parameter(torch.ones(()))]

    def loss():
        scores = features @ params[0].reshape(-1) + params[1]
        data = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels)
        return data + 0.05 * params[0].square().sum() + 0.01 * params[1] ** 4

    return params, loss


def closure_of(optimizer, loss):
    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def afresh(optimizer, params):
    pass


def resumed(state_dict, values):
    def prepare(optimizer, params):
        optimizer.load_state_dict(copy.deepcopy(state_dict))
        for param, value in zip(params, values, strict=True):
            param.data.copy_(value)

    return prepare


def run(cls, steps, prepare=afresh, **options):
    params, loss = problem()
    optimizer = cls(params, **options)
    prepare(optimizer, params)
    losses = [optimizer.step(closure_of(optimizer, loss)).item() for _ in range(steps)]
    return [p.detach().clone() for p in params], losses, optimizer


@pytest.mark.parametrize("options", [{}, {"lr": 0.3, "max_iter": 3}, {"history_size": 2}])
def test_without_a_search_it_is_torch_s(options):
    options = {"tolerance_grad": 1e-14, "tolerance_change": 1e-14, "max_iter": 6, **options}
    found, losses, ours = run(optcore.LBFGS, 5, **options)
    expected, expected_losses, theirs = run(torch.optim.LBFGS, 5, **options)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    assert losses == pytest.approx(expected_losses, rel=1e-12)
    own, other = (next(iter(o.state.values())) for o in (ours, theirs))
    assert (own["func_evals"], own["n_iter"]) == (other["func_evals"], other["n_iter"])


@pytest.mark.parametrize("limits", [{"max_eval": 4}, {"tolerance_grad": 1e-3}, {"max_iter": 1}])
def test_stops_where_torch_stops(limits):
    (_, _, ours), (_, _, theirs) = (
        run(optcore.LBFGS, 2, **limits),
        run(torch.optim.LBFGS, 2, **limits),
    )
    own, other = (next(iter(o.state.values())) for o in (ours, theirs))
    assert (own["func_evals"], own["n_iter"]) == (other["func_evals"], other["n_iter"])


@pytest.mark.parametrize(("search", "tolerance"), [("strong_wolfe", 1e-8), ("backtracking", 1e-6)])
def test_a_search_reaches_torch_s_minimum(search, tolerance):
    options = {"tolerance_grad": 1e-11, "tolerance_change": 0.0, "max_iter": 100}
    found, _, _ = run(optcore.LBFGS, 2, line_search_fn=search, **options)
    expected, _, _ = run(torch.optim.LBFGS, 2, line_search_fn="strong_wolfe", **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    params, loss = problem()
    for param, value in zip(params, found, strict=True):
        param.data.copy_(value)
    gradient = torch.autograd.grad(loss(), params)
    assert max(g.abs().max() for g in gradient) <= tolerance


@pytest.mark.parametrize("search", ["strong_wolfe", "backtracking"])
def test_rosenbrock_from_the_usual_start(search):
    w = torch.nn.Parameter(torch.tensor([-1.2, 1.0]))
    optimizer = optcore.LBFGS([w], max_iter=100, tolerance_change=0.0, line_search_fn=search)
    optimizer.step(closure_of(optimizer, lambda: (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2))
    assert (w - 1).abs().max() <= 1e-7
    info = optimizer.state[w]["line_search"]
    assert (info["num_linesearch_steps"], info["decrease_error"]) == (1, 0.0)


@pytest.mark.parametrize(
    ("first", "second"),
    [(optcore.LBFGS, torch.optim.LBFGS), (torch.optim.LBFGS, optcore.LBFGS)],
    ids=["to torch", "from torch"],
)
def test_state_moves_to_and_from_torch(first, second):
    options = {"max_iter": 4, "tolerance_change": 0.0}
    expected, _, _ = run(torch.optim.LBFGS, 4, **options)
    params, _, optimizer = run(first, 2, **options)
    found, _, _ = run(second, 2, resumed(optimizer.state_dict(), params), **options)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("search", ["strong_wolfe", None])
def test_checkpoint_loads_with_weights_only_and_goes_on_exactly(search, tmp_path):
    options = {"max_iter": 3, "line_search_fn": search}
    expected, _, _ = run(optcore.LBFGS, 4, **options)
    params, _, optimizer = run(optcore.LBFGS, 2, **options)
    torch.save((optimizer.state_dict(), params), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    found, _, _ = run(optcore.LBFGS, 2, resumed(*state), **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert pickle.loads(pickle.dumps(optimizer)).state_dict().keys() == state[0].keys()


def test_a_scheduler_sets_the_rate():
    w = torch.nn.Parameter(torch.tensor([8.0]))
    optimizer = optcore.LBFGS([w], lr=1.0, max_iter=1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    closure = closure_of(optimizer, lambda: 0.5 * w.square().sum())
    optimizer.step(closure)
    assert w.item() == 7.0  # min(1, 1 / |g|) g
    scheduler.step()
    optimizer.step(closure)
    assert w.item() == 3.5  # half of Newton's step


def test_hooks_run_and_gradients_stay():
    params, loss = problem()
    optimizer = optcore.LBFGS(params, max_iter=2)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    held = []

    def closure():
        value = closure_of(optimizer, loss)()
        held.append([(p.grad, p.grad.clone()) for p in params])
        return value

    optimizer.step(closure)
    assert calls == ["post"]
    for grads in held:
        for grad, copied in grads:
            assert torch.equal(grad, copied)


def test_a_parameter_without_gradient_stays():
    w, idle = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = optcore.LBFGS([idle, w], line_search_fn="strong_wolfe")
    optimizer.step(closure_of(optimizer, lambda: (w**4).sum()))
    assert torch.equal(idle, torch.ones(3))
    assert w.abs().max() < 0.1


def test_dtypes_mix_and_half_precision_sums_in_float32():
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float32))
    v = torch.nn.Parameter(torch.full((2,), 2.0, dtype=torch.bfloat16))
    optimizer = optcore.LBFGS([w, v], line_search_fn="strong_wolfe")
    optimizer.step(closure_of(optimizer, lambda: (w**2).sum() + (v.float() ** 2).sum()))
    assert (w.dtype, v.dtype) == (torch.float32, torch.bfloat16)
    assert optimizer.state[w]["d"].dtype == torch.float32
    assert max(w.abs().max().item(), v.abs().max().item()) < 1e-3


def test_a_zero_gradient_ends_at_once():
    w = torch.nn.Parameter(torch.zeros(2))
    optimizer = optcore.LBFGS([w], line_search_fn="strong_wolfe")
    assert optimizer.step(closure_of(optimizer, lambda: w.square().sum())).item() == 0.0
    assert optimizer.state[w] == {"func_evals": 1, "n_iter": 0}


@pytest.mark.parametrize("search", ["strong_wolfe", "backtracking"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_leave_the_parameters(search, bad):
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optcore.LBFGS([w], line_search_fn=search)

    def loss():
        here = torch.equal(w.detach(), torch.tensor([1.0, 2.0]))
        return w.square().sum() * (1.0 if here else bad)

    optimizer.step(closure_of(optimizer, loss))
    assert torch.equal(w, torch.tensor([1.0, 2.0]))
    assert optimizer.state[w]["line_search"]["decrease_error"] == math.inf
    assert optimizer.state[w]["line_search"]["num_linesearch_steps"] == 24


def test_a_loss_that_starts_as_nan_is_not_searched():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = optcore.LBFGS([w], line_search_fn="strong_wolfe")

    def closure():
        w.grad = torch.ones(2)
        return torch.tensor(math.nan)

    optimizer.step(closure)
    assert torch.equal(w, torch.ones(2))
    assert optimizer.state[w]["line_search"]["num_linesearch_steps"] == 0


def test_a_closure_that_raises_leaves_the_parameters_as_before_the_search():
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = optcore.LBFGS([w], line_search_fn="strong_wolfe")

    batches = {0: 1.0}

    def loss():
        return w.square().sum() * batches.pop(0)  # the second evaluation has none

    with pytest.raises(KeyError):
        optimizer.step(closure_of(optimizer, loss))
    assert torch.equal(w, torch.tensor([1.0, 2.0]))


def ones():
    return [torch.ones(1, requires_grad=True)]


def stepped(closure, params=None):
    return optcore.LBFGS(ones() if params is None else params).step(closure)


def sparse():
    params = ones()

    def closure():
        params[0].grad = torch.ones(1).to_sparse()
        return 1.0

    return stepped(closure, params)


def set_wrong():
    optimizer = optcore.LBFGS(ones())
    optimizer.param_groups[0]["lr"] = -1.0
    return optimizer.step(lambda: 1.0)


ERRORS = [
    (
        lambda: optcore.LBFGS([{"params": ones()}, {"params": ones()}]),
        ValueError,
        "LBFGS: expected one parameter group, got another: its curvature is that of all "
        "parameters together; give them in one list, or use one LBFGS per group",
    ),
    (
        lambda: optcore.LBFGS(ones()).add_param_group({"params": ones()}),
        ValueError,
        "LBFGS: expected one parameter group, got another",
    ),
    (lambda: optcore.LBFGS(ones(), lr=-1.0), ValueError, "LBFGS: expected lr >= 0"),
    (
        lambda: optcore.LBFGS(ones(), lr=torch.ones(2)),
        TypeError,
        "LBFGS, lr: expected a real number or a scalar tensor, got f64[2]",
    ),
    (lambda: optcore.LBFGS(ones(), max_iter=0), ValueError, "LBFGS: expected max_iter >= 1, got 0"),
    (lambda: optcore.LBFGS(ones(), max_eval=0), ValueError, "LBFGS: expected max_eval >= 1, got 0"),
    (
        lambda: optcore.LBFGS(ones(), history_size=2.5),
        TypeError,
        "LBFGS: expected history_size as an int, got float",
    ),
    (
        lambda: optcore.LBFGS(ones(), tolerance_grad=-1.0),
        ValueError,
        "LBFGS: expected tolerance_grad >= 0, got -1.0",
    ),
    (
        lambda: optcore.LBFGS(ones(), tolerance_change="no"),
        TypeError,
        "LBFGS: expected tolerance_change as a number, got str",
    ),
    (
        lambda: optcore.LBFGS([{"params": ones(), "line_search_fn": "wolfe"}]),
        ValueError,
        'LBFGS: expected line_search_fn "strong_wolfe", "backtracking" or None, got \'wolfe\'',
    ),
    (
        lambda: optcore.LBFGS([torch.ones(1, dtype=torch.complex128)]),
        TypeError,
        "LBFGS: expected real floating parameters, got c128[1]",
    ),
    (
        lambda: stepped(None),
        TypeError,
        "LBFGS.step: expected a closure, got NoneType; pass a function that zeroes the gradients, "
        "computes the loss, calls backward and returns the loss",
    ),
    (
        lambda: stepped(lambda: None),
        TypeError,
        "LBFGS.step, closure: expected a real number or a scalar tensor, got NoneType",
    ),
    (sparse, TypeError, "LBFGS.step: expected dense gradients, got torch.sparse_coo"),
    (set_wrong, ValueError, "LBFGS: expected lr >= 0"),
    (
        lambda: stepped(lambda: 1.0, [*ones(), torch.ones(1, device="meta")]),
        ValueError,
        "LBFGS.step: expected parameters on one device, got ['cpu', 'meta']",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()
