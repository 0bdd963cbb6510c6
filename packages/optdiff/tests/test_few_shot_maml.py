# SPDX-License-Identifier: Apache-2.0
"""The algorithm of the few-shot example against a loop of plain torch, and its baselines."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    baselines, episodes, maml = map(importlib.import_module, ("baselines", "episodes", "maml"))

LR, STEPS = 0.4, 3


@pytest.fixture
def task():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 1, 1, 28, 28, generator=generator)
    noise = torch.rand(5, 8, 1, 28, 28, generator=generator)
    labels = torch.arange(5)
    drawn = images + noise
    return episodes.Task(
        drawn[:, :3].flatten(0, 1),
        labels.repeat_interleave(3),
        drawn[:, 3:].flatten(0, 1),
        labels.repeat_interleave(5),
    )


def adapted(model, task, steps, *, first_order):
    """Adapt by hand; return the parameters."""
    params = dict(model.named_parameters())
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, params, task.support), task.support_labels)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
        params = {name: p - LR * g for (name, p), g in zip(params.items(), grads)}
    return params


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_equals_a_loop_of_plain_torch(task, first_order):
    model = maml.conv_net(ways=5, width=4)
    params = list(model.parameters())
    inner = maml.inner_optimizer(model, "sgd", LR, first_order=first_order)
    loss, _ = maml.query_loss(model, inner, task, STEPS)
    found = torch.autograd.grad(loss, params)
    last = adapted(model, task, STEPS, first_order=first_order)
    wanted_loss = F.cross_entropy(functional_call(model, last, task.query), task.query_labels)
    wanted = torch.autograd.grad(wanted_loss, params)
    torch.testing.assert_close(loss, wanted_loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_second_order_terms_matter(task):
    model = maml.conv_net(ways=5, width=4)
    grads = []
    for first_order in (False, True):
        inner = maml.inner_optimizer(model, "sgd", LR, first_order=first_order)
        loss, _ = maml.query_loss(model, inner, task, STEPS)
        grads.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])
        )
    assert (grads[0] - grads[1]).norm() > 0.1 * grads[0].norm()


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_adaptation_reports_each_step_and_leaves_the_model_alone(task, name):
    model = maml.conv_net(ways=5, width=4)
    before = {key: (param, param.detach().clone()) for key, param in model.named_parameters()}
    inner = maml.inner_optimizer(model, name, 0.01, first_order=True)
    first = maml.adaptation(model, inner, task, (0, 1, 3))
    again = maml.adaptation(model, inner, task, (0, 1, 3))
    assert first == again
    assert len(first) == 3
    for key, param in model.named_parameters():
        kept, value = before[key]
        assert param is kept
        assert torch.equal(param, value)


def test_adaptation_equals_a_loop_of_plain_torch(task):
    model = maml.conv_net(ways=5, width=4)
    inner = maml.inner_optimizer(model, "sgd", LR, first_order=True)
    found = maml.adaptation(model, inner, task, (0, 1, 3))
    params = [adapted(model, task, steps, first_order=True) for steps in (0, 1, 3)]
    logits = [functional_call(model, one, task.query) for one in params]
    assert found == [maml.accuracy(one, task.query_labels) for one in logits]
    assert found[-1] > found[0]


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_outer_steps_lower_the_loss_after_adaptation(task, name):
    model = maml.conv_net(ways=5, width=4)
    inner = maml.inner_optimizer(model, name, 0.03, first_order=False)
    outer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = [maml.meta_step(model, inner, outer, [task, task], steps=2)[0] for _ in range(8)]
    assert losses[-1] < 0.8 * losses[0]


def test_baselines_solve_a_task_whose_queries_repeat_the_support(task):
    easy = task._replace(query=task.support, query_labels=task.support_labels)
    assert baselines.nearest_neighbour(easy) == 1
    assert baselines.from_scratch(easy, ways=5, width=8) == 1
