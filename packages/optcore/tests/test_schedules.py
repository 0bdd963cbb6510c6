# SPDX-License-Identifier: Apache-2.0
"""Schedules equal their formulas, are values, and are differentiable in their parameters."""

import math
import pickle
import re
from functools import reduce
from itertools import pairwise

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optcore

COUNTS = [-1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 14, 15, 20, 21, 100]


def line(t, start, end, steps):
    return start + (end - start) * min(max(t, 0), steps) / steps


def half_cosine(t, steps):
    return (1 + math.cos(math.pi * min(t, steps) / steps)) / 2


def warm(t, start, peak, steps, after):
    return line(t, start, peak, steps) if t < steps else after(t - steps)


def interpolated(t, points, shape):
    """Through ``points`` (count, value), the first at 0."""
    t = min(max(t, 0), points[-1][0])
    (a, low), (b, high) = next(pair for pair in pairwise(points) if t <= pair[1][0])
    return low + (high - low) * shape((t - a) / (b - a))


def sine_shape(x):
    return (1 - math.cos(math.pi * x)) / 2


CYCLE = {"init_value": 0.3, "peak_value": 2.0, "warmup_steps": 3, "decay_steps": 10}

# name: schedule, its formula written independently
CASES = {
    "constant": (optcore.constant_schedule(0.3), lambda t: 0.3),
    "linear": (optcore.linear_schedule(0.3, 1.7, 10, 3), lambda t: line(t - 3, 0.3, 1.7, 10)),
    "linear, no steps": (optcore.linear_schedule(0.3, 1.7, 0), lambda t: 0.3),
    "polynomial": (
        optcore.polynomial_schedule(3, 1, 2.5, 7, 2),
        lambda t: 1 + 2 * (1 - line(t - 2, 0, 1, 7)) ** 2.5,
    ),
    "exponential": (
        optcore.exponential_decay(0.3, 5, 0.7, 2),
        lambda t: 0.3 * 0.7 ** (max(t - 2, 0) / 5),
    ),
    "exponential, stairs down to": (
        optcore.exponential_decay(0.3, 5, 0.7, staircase=True, end_value=0.11),
        lambda t: max(0.3 * 0.7 ** (max(t, 0) // 5), 0.11),
    ),
    "exponential, up to": (
        optcore.exponential_decay(0.3, 5, 1.7, end_value=0.9),
        lambda t: min(0.3 * 1.7 ** (max(t, 0) / 5), 0.9),
    ),
    "cosine": (
        optcore.cosine_decay_schedule(0.3, 15, 0.2, 1.7),
        lambda t: 0.3 * (0.8 * half_cosine(t, 15) ** 1.7 + 0.2),
    ),
    "warmup constant": (
        optcore.warmup_constant_schedule(0.3, 2.0, 6),
        lambda t: line(t, 0.3, 2.0, 6),
    ),
    "warmup cosine": (
        optcore.warmup_cosine_decay_schedule(0.3, 2.0, 6, 20, 0.1, 1.3),
        lambda t: warm(t, 0.3, 2.0, 6, lambda s: 0.1 + 1.9 * half_cosine(s, 14) ** 1.3),
    ),
    "warmup exponential": (
        optcore.warmup_exponential_decay_schedule(0.3, 2.0, 6, 4, 0.6, 3, end_value=0.4),
        lambda t: warm(t, 0.3, 2.0, 6, lambda s: max(2.0 * 0.6 ** (max(s - 3, 0) / 4), 0.4)),
    ),
    "inverse sqrt": (
        optcore.inverse_sqrt_schedule(0.3, 2.0, 4),
        lambda t: warm(t, 0.3, 2.0, 4, lambda s: 2.0 * math.sqrt(4 / (s + 4))),
    ),
    "inverse sqrt, timescale": (
        optcore.inverse_sqrt_schedule(0.3, 2.0, 0, timescale=7.5),
        lambda t: 2.0 * math.sqrt(7.5 / (max(t, 0) + 7.5)) if t >= 0 else 0.3,
    ),
    "piecewise constant": (
        optcore.piecewise_constant_schedule(0.7, {10: 2.0, 3: 0.5, 15: 0.0}),
        lambda t: reduce(
            lambda v, p: v * p[1] if t >= p[0] else v, [(3, 0.5), (10, 2), (15, 0)], 0.7
        ),
    ),
    "piecewise constant, no pieces": (optcore.piecewise_constant_schedule(0.7), lambda t: 0.7),
    "piecewise linear": (
        optcore.piecewise_interpolate_schedule("linear", 0.8, {3: 0.5, 10: 2.0, 15: 0.1}),
        lambda t: interpolated(t, [(0, 0.8), (3, 0.4), (10, 0.8), (15, 0.08)], lambda x: x),
    ),
    "piecewise cosine": (
        optcore.piecewise_interpolate_schedule("cosine", 0.8, {0: 0.5, 10: 2.0, 15: 0.0}),
        lambda t: interpolated(t, [(0, 0.4), (10, 0.8), (15, 0.0)], sine_shape) + 0.4 * (t < 0),
    ),
    "one cycle, linear": (
        optcore.linear_onecycle_schedule(20, 0.6, 0.3, 0.75, 3.0, 7.0),
        lambda t: interpolated(t, [(0, 0.2), (6, 0.6), (15, 0.2), (20, 0.2 / 7)], lambda x: x),
    ),
    "one cycle, cosine": (
        optcore.cosine_onecycle_schedule(20, 0.6, 0.3, 3.0, 7.0),
        lambda t: interpolated(t, [(0, 0.2), (6, 0.6), (20, 0.2 / 7)], sine_shape),
    ),
    "restarts": (
        optcore.sgdr_schedule([CYCLE, CYCLE | {"peak_value": 1.0, "decay_steps": 5}]),
        lambda t: (
            warm(t, 0.3, 2.0, 3, lambda s: 2.0 * half_cosine(s, 7))
            if t < 10
            else warm(t - 10, 0.3, 1.0, 3, lambda s: half_cosine(s, 2))
        ),
    ),
    "joined": (
        optcore.join_schedules([optcore.linear_schedule(0, 1, 5), abs], [5]),
        lambda t: line(t, 0, 1, 5) if t < 5 else t - 5,
    ),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def case(request):
    return request.param


@pytest.mark.parametrize("count", COUNTS)
def test_equals_its_formula(case, count):
    schedule, formula = case
    number, tensor = schedule(count), schedule(torch.tensor(count))
    assert type(number) is float
    assert number == pytest.approx(formula(count), rel=1e-12, abs=1e-15)
    assert (tensor.dtype, tensor.shape) == (torch.float64, ())
    assert tensor.item() == number


def test_a_schedule_is_a_value(case):
    schedule, _ = case
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert again(7) == schedule(7)
    assert repr(again) == repr(schedule)


def test_precision_does_not_depend_on_the_default_dtype(case):
    schedule, formula = case
    torch.set_default_dtype(torch.float32)
    assert schedule(7) == pytest.approx(formula(7), rel=1e-12)


def test_vmap_over_counts_equals_the_loop(case):
    schedule, formula = case
    counts = torch.tensor(COUNTS)
    values = torch.vmap(lambda count: schedule(count))(counts)
    expected = torch.tensor([formula(count) for count in COUNTS])
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.skipif(torch.__version__ < "2.9", reason="torch 2.6 does not compile joined schedules")
def test_compiles_without_a_break_or_a_recompile(case):
    schedule, _ = case
    torch.compiler.reset()
    compiled = torch.compile(schedule.__call__, backend="eager", fullgraph=True)
    assert compiled(torch.tensor(3)).item() == schedule(3)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert compiled(torch.tensor(11)).item() == schedule(11)


def test_repr_and_inequality():
    schedule = optcore.linear_schedule(1.0, torch.tensor(0.0), 10)
    assert repr(schedule) == (
        "linear_schedule(init_value=1.0, end_value=f64[], power=1.0, transition_steps=10, "
        "transition_begin=0)"
    )
    assert schedule != optcore.linear_schedule(1.0, torch.tensor(0.0), 10)
    assert schedule != optcore.polynomial_schedule(1.0, 0.0, 2, 10)
    assert schedule != "linear_schedule"


# parameters -> schedule; kinks and ends are among the counts below
LEARNED = {
    "constant": lambda h: optcore.constant_schedule(h[0]),
    "polynomial": lambda h: optcore.polynomial_schedule(h[0], h[1], h[2], 7, 2),
    "exponential": lambda h: optcore.exponential_decay(h[0], 5, h[1], 2, end_value=h[2] * 0.1),
    "cosine": lambda h: optcore.cosine_decay_schedule(h[0], 15, h[1], h[2]),
    "warmup constant": lambda h: optcore.warmup_constant_schedule(h[0], h[1], 6),
    "warmup cosine": lambda h: optcore.warmup_cosine_decay_schedule(h[0], h[1], 6, 15, h[2], h[3]),
    "warmup exponential": lambda h: optcore.warmup_exponential_decay_schedule(
        h[0], h[1], 6, 4, h[2], 3, end_value=h[3] * 0.01
    ),
    "inverse sqrt": lambda h: optcore.inverse_sqrt_schedule(h[0], h[1], 6, h[2]),
    "piecewise constant": lambda h: optcore.piecewise_constant_schedule(h[0], {3: h[1], 9: h[2]}),
    "piecewise cosine": lambda h: optcore.piecewise_interpolate_schedule(
        "cosine", h[0], {3: h[1], 9: h[2]}
    ),
    "one cycle, linear": lambda h: optcore.linear_onecycle_schedule(
        20, h[0], div_factor=h[1], final_div_factor=h[2]
    ),
    "one cycle, cosine": lambda h: optcore.cosine_onecycle_schedule(
        20, h[0], div_factor=h[1], final_div_factor=h[2]
    ),
    "joined": lambda h: optcore.join_schedules(
        [optcore.constant_schedule(h[0]), lambda t: h[1] / (1 + t)], [5]
    ),
}


@pytest.fixture(params=LEARNED.values(), ids=LEARNED.keys())
def learned(request):
    return request.param


def sweep(build, h):
    schedule = build(h)
    return torch.stack([schedule(torch.tensor(count)) for count in (0, 1, 3, 6, 9, 15, 40)])


def test_parameters_have_exact_derivatives(learned):
    h = torch.tensor([0.9, 0.7, 1.3, 1.7], requires_grad=True)
    assert gradcheck(lambda h: sweep(learned, h), [h])
    assert gradgradcheck(lambda h: sweep(learned, h), [h])


def test_vmap_over_parameters_equals_the_loop(learned):
    h = torch.tensor([[0.9, 0.7, 1.3, 1.7], [0.4, 0.2, 1.1, 0.6]])
    batched = torch.vmap(lambda h: sweep(learned, h))(h)
    torch.testing.assert_close(batched, torch.stack([sweep(learned, row) for row in h]))


def test_a_graph_survives_a_number_as_count():
    lr = torch.tensor(0.1, requires_grad=True)
    schedule = optcore.linear_schedule(lr, 0.0, 10)
    assert torch.autograd.grad(schedule(5), lr) == (torch.tensor(0.5),)
    assert torch.autograd.grad(schedule(5), lr) == (torch.tensor(0.5),)  # nothing was freed


def test_drives_an_optimizer_and_learns_through_it():
    peak = torch.tensor(0.5, requires_grad=True)
    schedule = optcore.warmup_cosine_decay_schedule(0.0, peak, 1, 3)
    tx = optcore.sgd(lr=schedule)
    params = [torch.tensor(2.0)]
    state = tx.init(params)
    for _ in range(3):  # learning rates 0, peak, peak / 2 on the gradient 1
        updates, state = tx.update([torch.tensor(1.0)], state, params)
        params = optcore.apply_updates(params, updates)
    assert params[0].item() == pytest.approx(2.0 - 0.75)
    assert torch.autograd.grad(params[0], peak)[0].item() == pytest.approx(-1.5)


NAN = float("nan")
ERRORS = [
    (
        lambda: optcore.constant_schedule("0.1"),
        TypeError,
        "constant_schedule: expected value as a number or tensor, got str",
    ),
    (
        lambda: optcore.constant_schedule(torch.tensor(1)),
        TypeError,
        "constant_schedule: expected value as a floating tensor, got i64[]",
    ),
    (
        lambda: optcore.linear_schedule(NAN, 0.0, 1),
        ValueError,
        "linear_schedule: expected init_value finite, got nan",
    ),
    (
        lambda: optcore.linear_schedule(1.0, 0.0, -1),
        ValueError,
        "linear_schedule: expected transition_steps >= 0, got -1",
    ),
    (
        lambda: optcore.linear_schedule(1.0, 0.0, 1, transition_begin=-1),
        ValueError,
        "linear_schedule: expected transition_begin >= 0, got -1",
    ),
    (
        lambda: optcore.polynomial_schedule(1.0, 0.0, 0, 1),
        ValueError,
        "polynomial_schedule: expected power > 0, got 0",
    ),
    (
        lambda: optcore.exponential_decay(1.0, 0.9, 10),  # TorchOpt's order
        TypeError,
        "exponential_decay: expected transition_steps as an integer, got 0.9",
    ),
    (
        lambda: optcore.exponential_decay(1.0, "10", 0.9),
        TypeError,
        "exponential_decay: expected transition_steps as an integer, got str",
    ),
    (
        lambda: optcore.exponential_decay(1.0, 10, 0.0),
        ValueError,
        "exponential_decay: expected decay_rate > 0, got 0.0",
    ),
    (
        lambda: optcore.cosine_decay_schedule(1.0, 0),
        ValueError,
        "cosine_decay_schedule: expected decay_steps >= 1, got 0",
    ),
    (
        lambda: optcore.constant_schedule(0.1)("3"),
        TypeError,
        "constant_schedule: expected count as a number or tensor, got str",
    ),
    (
        lambda: optcore.warmup_cosine_decay_schedule(0.0, 1.0, 10, 10),
        ValueError,
        "warmup_cosine_decay_schedule: expected decay_steps >= 11, got 10",
    ),
    (
        lambda: optcore.inverse_sqrt_schedule(0.0, 1.0, 0),
        ValueError,
        "inverse_sqrt_schedule: expected a timescale or warmup_steps >= 1, got neither",
    ),
    (
        lambda: optcore.sgdr_schedule([]),
        ValueError,
        "sgdr_schedule: expected the arguments of at least one cycle, got none",
    ),
    (
        lambda: optcore.join_schedules([abs, 0.1], [3]),
        TypeError,
        "join_schedules: expected schedules count -> value, got float, at schedules[1]",
    ),
    (
        lambda: optcore.join_schedules([abs, abs], [3, 4]),
        ValueError,
        "join_schedules: expected one boundary fewer than schedules, got 2 schedules and 2",
    ),
    (
        lambda: optcore.join_schedules([abs, abs, abs], [4, 4]),
        ValueError,
        "join_schedules: expected increasing boundaries, got [4, 4]",
    ),
    (
        lambda: optcore.piecewise_constant_schedule(1.0, {0.5: 1.0}),
        TypeError,
        "piecewise_constant_schedule: expected boundaries as an integer, got 0.5",
    ),
    (
        lambda: optcore.piecewise_constant_schedule(1.0, {5: -1.0}),
        ValueError,
        "piecewise_constant_schedule: expected the scale at 5 >= 0, got -1.0",
    ),
    (
        lambda: optcore.piecewise_interpolate_schedule("spline", 1.0),
        ValueError,
        "piecewise_interpolate_schedule: expected interpolate_type 'linear' or 'cosine', got 'spl",
    ),
    (
        lambda: optcore.linear_onecycle_schedule(10, 1.0, 0.9, 0.1),
        ValueError,
        "linear_onecycle_schedule: expected 0 <= pct_start <= pct_final <= 1, got 0.9 and 0.1",
    ),
    (
        lambda: optcore.cosine_onecycle_schedule(10, 1.0, 1.5),
        ValueError,
        "cosine_onecycle_schedule: expected pct_start in [0, 1], got 1.5",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


@pytest.mark.parametrize(
    "make", [optcore.linear_onecycle_schedule, optcore.cosine_onecycle_schedule]
)
def test_the_turning_point_is_a_number(make):
    with pytest.raises(TypeError, match="expected pct_start as a number, got f"):
        make(10, 0.1, pct_start=torch.tensor(0.3))
