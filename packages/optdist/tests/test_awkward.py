# SPDX-License-Identifier: Apache-2.0
"""Calls that once gave a wrong gradient in silence, or went on for ever."""

import functools
import json

import pytest
import torch

import optdist

TOLERANCE = 1e-12
ABSENT = (
    "WorkerLostError: mean: expected worker2 to run its part, got one that is lost or frozen; name "
    "another, or give on_worker_lost='redispatch'"
)


@pytest.fixture(scope="module")
def found(program, tmp_path_factory):
    """What one run with three workers tells of all cases."""
    path = tmp_path_factory.mktemp("awkward") / "found.json"
    started = program(("optdist.launch", "--nproc", "3"), "awkward.py", [path])
    try:
        assert started.wait() == 0, started.err
    finally:
        started.end()
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", ["late writer", "bound", "module", "partial", "at once", "again"])
def test_value_and_gradient_are_those_of_one_process(found, case):
    assert found[case] <= TOLERANCE


def test_nobody_waits_for_a_worker_that_was_lost_before(found):
    off, errors = found["absent"]
    assert max(off) <= TOLERANCE
    assert errors == [ABSENT] * 6


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("own exception", "RuntimeError: only_there.Own: no"),
        ("remote error", "RuntimeError: EOF: end of file, says the function"),
        (
            "remote result",
            "TypeError: remote_async_call: expected arguments and results that pickle can send, "
            "got an error of worker1 beside the function (TypeError: cannot pickle "
            "'_thread.lock' object); define classes and functions at the top level of a module",
        ),
    ],
)
def test_errors_of_the_other_side_are_raised_here(found, case, text):
    assert found[case] == text


def test_errors_of_functions_cost_no_worker(found):
    assert found["all live"] == 9


def test_remote_calls_give_futures_of_torch(found):
    assert found["futures"] == [[20.0] * 3, [3.0] * 3]


def test_futures_leave_the_random_numbers_of_the_program_alone(found):
    assert found["random numbers"] is True


def test_autocast_goes_along(found):
    off, effect = found["autocast"]
    assert off < 1e-6 < effect


class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        return (self.w * x).mean(0)

    def loss(self, x):
        return self(x)


def call(model, x):
    return model(x)


@pytest.mark.parametrize(
    "make",
    [lambda m: m, lambda m: m.loss, lambda m: functools.partial(call, m)],
    ids=["module", "method", "partial"],
)
def test_what_carries_tensors_learns_them_alone_too(make):
    """A loss of one element keeps its shape."""
    model = Scale()
    value = optdist.parallelize()(make(model))(torch.tensor([[1.0], [3.0]]))
    value.backward(torch.tensor([0.5]))
    assert value.tolist() == [4.0]
    assert model.w.grad.tolist() == [1.0]


def test_sparse_gradients_come_as_dense_ones():
    table = torch.nn.Embedding(3, 2, sparse=True)
    optdist.parallelize()(of_table)(table, torch.tensor([0, 2])).backward()
    wanted = torch.zeros(3, 2)
    wanted[[0, 2]] = table.weight.detach()[[0, 2]] / 2
    torch.testing.assert_close(table.weight.grad, wanted, rtol=0, atol=TOLERANCE)


def of_table(table, rows):
    return table(rows).square().mean()
