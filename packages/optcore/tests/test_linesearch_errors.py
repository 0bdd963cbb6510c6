# SPDX-License-Identifier: Apache-2.0
"""What line searches and L-BFGS refuse."""

import math
import re

import pytest
import torch

import optcore


def cubic(params):
    return (params["x"] ** 2).sum()


def start():
    return {"x": torch.tensor([3.0, -4.0])}


def call(tx, **extra):
    return tx.update(start(), tx.init(start()), start(), **extra)


def step(tx, **extra):
    return call(tx, **{"value": 1.0, "grad": start(), "value_fn": cubic, **extra})


def build(name, *args, **kwargs):
    return getattr(optcore, name)(*args, **kwargs)


ZOOM, BACK = "scale_by_zoom_linesearch", "scale_by_backtracking_linesearch"
REMEDY = "; call update(updates, state, params, value=value, grad=grad, value_fn=value_fn)"
ERRORS = [
    (
        lambda: step(optcore.masked(build(ZOOM, 9), {"x": False})),
        ValueError,
        f"{ZOOM}: expected all parameters, which value_fn wants, got some hidden by a mask; mask "
        "what comes before the line search, not the line search",
    ),
    (lambda: build(ZOOM, 0), ValueError, f"{ZOOM}: expected max_linesearch_steps >= 1, got 0"),
    (
        lambda: build(ZOOM, 9, max_learning_rate=0),
        ValueError,
        f"{ZOOM}: expected max_learning_rate > 0, got 0",
    ),
    (lambda: build(ZOOM, 9, tol=-1), ValueError, f"{ZOOM}: expected tol >= 0, got -1"),
    (
        lambda: build(ZOOM, 9, increase_factor=1),
        ValueError,
        f"{ZOOM}: expected increase_factor > 1 and finite, got 1",
    ),
    (
        lambda: build(ZOOM, 9, slope_rtol=1.0),
        ValueError,
        f"{ZOOM}: expected slope_rtol >= 0 and < 1, got 1.0",
    ),
    (
        lambda: build(ZOOM, 9, curv_rtol=torch.tensor(0.5)),
        TypeError,
        f"{ZOOM}: expected curv_rtol as a number, got f64[]",
    ),
    (
        lambda: build(ZOOM, 9, approx_dec_rtol=-1.0),
        ValueError,
        f"{ZOOM}: expected approx_dec_rtol >= 0, got -1.0",
    ),
    (
        lambda: build(ZOOM, 9, stepsize_precision=math.nan),
        ValueError,
        f"{ZOOM}: expected stepsize_precision >= 0, got nan",
    ),
    (
        lambda: build(ZOOM, 9, initial_guess_strategy="two"),
        ValueError,
        f'{ZOOM}: expected initial_guess_strategy "one" or "keep", got \'two\'',
    ),
    (
        lambda: build(BACK, 1.5),
        TypeError,
        f"{BACK}: expected max_backtracking_steps as an int, got float",
    ),
    (
        lambda: build(BACK, 9, decrease_factor=1.0),
        ValueError,
        f"{BACK}: expected decrease_factor > 0 and < 1, got 1.0",
    ),
    (
        lambda: build(BACK, 9, increase_factor=0.5),
        ValueError,
        f"{BACK}: expected increase_factor >= 1, got 0.5",
    ),
    (
        lambda: build(BACK, 9, max_learning_rate=math.inf),
        ValueError,
        f"{BACK}: expected max_learning_rate > 0 and finite, got inf",
    ),
    (lambda: build(BACK, 9, atol=-1), ValueError, f"{BACK}: expected atol >= 0, got -1"),
    (lambda: build(BACK, 9, rtol=-1), ValueError, f"{BACK}: expected rtol >= 0, got -1"),
    (lambda: call(build(ZOOM, 9)), TypeError, f"{ZOOM}: expected value=, got None{REMEDY}"),
    (
        lambda: step(build(ZOOM, 9), grad=None),
        TypeError,
        f"{ZOOM}: expected grad=, got None{REMEDY}",
    ),
    (
        lambda: step(build(BACK, 9), value_fn=None),
        TypeError,
        f"{BACK}: expected value_fn=, got None{REMEDY}",
    ),
    (
        lambda: step(build(BACK, 9), value_fn=3),
        TypeError,
        f"{BACK}: expected value_fn as a function params -> value, got int",
    ),
    (
        lambda: step(build(BACK, 9), value=start()),
        TypeError,
        f"{BACK}, value: expected a real number or a scalar tensor, got dict",
    ),
    (
        lambda: step(build(ZOOM, 9), batch=3),
        TypeError,
        f"{ZOOM}: expected extra arguments that value_fn takes, among [], got ['batch']",
    ),
    (
        lambda: step(build(ZOOM, 9), grad=[torch.ones(2)]),
        ValueError,
        f"{ZOOM}: grad differs from updates",
    ),
    (
        lambda: optcore.lbfgs().update(start(), optcore.lbfgs().init(start()), start()),
        TypeError,
        f"{ZOOM}: expected value=, got None{REMEDY}",
    ),
    (
        lambda: build(ZOOM, 9).update(start(), build(ZOOM, 9).init(start())),
        ValueError,
        f"{ZOOM}: expected params, got None; call update(updates, state, params)",
    ),
    (
        lambda: step(build(BACK, 9), grad={"x": -start()["x"]}, value_fn=lambda p: "?"),
        TypeError,
        f"{BACK}, value_fn: expected a real number or a scalar tensor, got str",
    ),
    (
        lambda: step(build(ZOOM, 9), grad={"x": -start()["x"]}, value_fn=lambda p: p["x"]),
        ValueError,
        f"{ZOOM}, value_fn: expected a scalar loss, got f64[2]; reduce it",
    ),
    (
        lambda: step(
            build(ZOOM, 9), grad={"x": -start()["x"]}, value_fn=lambda p: cubic(p).detach()
        ),
        ValueError,
        f"{ZOOM}, value_fn: expected a loss that depends on parameters that require grad",
    ),
    (
        lambda: optcore.value_and_grad_from_state(3),
        TypeError,
        "value_and_grad_from_state: expected value_fn as a function params -> value, got int",
    ),
    (
        lambda: optcore.value_and_grad_from_state(cubic)(start(), state=()),
        ValueError,
        "value_and_grad_from_state: expected the state of one line search, got 0",
    ),
    (
        lambda: optcore.value_and_grad_from_state(cubic)(
            start(), state=build(BACK, 9).init(start())
        ),
        ValueError,
        "value_and_grad_from_state: expected a gradient in the state, got None; use "
        "scale_by_backtracking_linesearch(store_grad=True)",
    ),
    (
        lambda: torch.func.vmap(lambda v: step(build(ZOOM, 9), value=v))(torch.ones(2)),
        RuntimeError,
        f"{ZOOM}: expected a call outside torch.compile, vmap, torch.func.grad and jvp",
    ),
    (
        lambda: torch.func.grad(lambda v: step(build(BACK, 9), value=v)[0]["x"].sum())(
            torch.ones(())
        ),
        RuntimeError,
        f"{BACK}: expected a call outside torch.compile, vmap, torch.func.grad and jvp",
    ),
]


@pytest.mark.parametrize(("run", "error", "message"), ERRORS)
def test_errors(run, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        run()
