# SPDX-License-Identifier: Apache-2.0
"""The algorithms of the few-shot example against plain torch, and its baselines."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    baselines, cost, episodes, es_maml, imaml, maml, network = map(
        importlib.import_module,
        ("baselines", "cost", "episodes", "es_maml", "imaml", "maml", "network"),
    )

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


def accuracy(logits, task):
    return (logits.argmax(dim=1) == task.query_labels).double().mean().item()


def flat_gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*model.parameters()])])


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_equals_a_loop_of_plain_torch(task, first_order):
    model = network.conv_net(ways=5, width=4)
    rule = network.inner_rule("sgd", LR)
    loss = maml.MAML(model, rule, STEPS, first_order=first_order)([task, task])
    last = adapted(model, task, STEPS, first_order=first_order)
    wanted = F.cross_entropy(functional_call(model, last, task.query), task.query_labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        flat_gradient(loss, model), flat_gradient(wanted, model), rtol=1e-10, atol=1e-10
    )


def test_second_order_terms_matter(task):
    model = network.conv_net(ways=5, width=4)
    rule = network.inner_rule("sgd", LR)
    exact, constant = (
        flat_gradient(maml.MAML(model, rule, STEPS, first_order=first_order)([task]), model)
        for first_order in (False, True)
    )
    assert (exact - constant).norm() > 0.1 * exact.norm()


def test_the_implicit_meta_gradient_equals_that_of_the_whole_hessian(task):
    model, pull = network.conv_net(ways=5, width=2), 20.0
    algorithm = imaml.ImplicitMAML(
        model, network.inner_rule("sgd", 0.02), STEPS, pull=pull, cg_iterations=500
    )
    found = flat_gradient(algorithm([task, task]), model)

    names, shapes = zip(*((name, param.shape) for name, param in model.named_parameters()))
    start = torch.cat([param.detach().flatten() for param in model.parameters()])

    def logits(flat, images):
        parts = flat.split([shape.numel() for shape in shapes])
        named = {name: x.view(shape) for name, x, shape in zip(names, parts, shapes)}
        return functional_call(model, named, (images,))

    def support_loss(flat):
        return F.cross_entropy(logits(flat, task.support), task.support_labels)

    def query_loss(flat):
        return F.cross_entropy(logits(flat, task.query), task.query_labels)

    last = start
    for _ in range(STEPS):
        last = last - 0.02 * (torch.func.grad(support_loss)(last) + pull * (last - start))
    # torch.func.hessian, which is forward over reverse under vmap, is wrong for batch norm
    hessian = torch.func.jacrev(torch.func.grad(support_loss))(last)
    matrix = torch.eye(len(start)) + hessian / pull
    wanted = torch.linalg.solve(matrix, torch.func.grad(query_loss)(last))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert (found - torch.func.grad(query_loss)(last)).norm() > 0.01 * found.norm()


def test_the_zero_order_meta_gradient_estimates_the_explicit_one(task):
    model, rule = network.conv_net(ways=5, width=2), network.inner_rule("sgd", 0.1)
    explicit = maml.MAML(model, rule, 1)([task])
    estimated = es_maml.ZeroOrderMAML(model, rule, 1, samples=200, sigma=1e-7, seed=0)([task])
    torch.testing.assert_close(estimated, explicit, rtol=1e-10, atol=0)
    exact, estimate = flat_gradient(explicit, model), flat_gradient(estimated, model)
    length = estimate @ exact / (exact @ exact)  # 1 on average, of variance 2 / samples
    assert (length - 1).abs() < 4 * (2 / 200) ** 0.5
    assert F.cosine_similarity(exact, estimate, dim=0) > 0.6  # about sqrt(200 / 365)


def test_each_task_has_its_own_directions(task):
    model, rule = network.conv_net(ways=5, width=2), network.inner_rule("sgd", 0.1)
    one, two = (
        es_maml.ZeroOrderMAML(model, rule, 1, samples=1, sigma=1e-3, seed=0)([task] * count)
        for count in (1, 2)
    )
    first, mean = flat_gradient(one, model), flat_gradient(two, model)
    assert F.cosine_similarity(first, mean, dim=0) < 0.99


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_adaptation_repeats_and_leaves_the_model_alone(task, name):
    model = network.conv_net(ways=5, width=4)
    before = {key: (param, param.detach().clone()) for key, param in model.named_parameters()}
    rule, tasks = network.inner_rule(name, 0.01), episodes.stack([task, task])
    first = network.adaptation(model, rule, tasks, (0, 1, 3))
    again = network.adaptation(model, rule, tasks, (0, 1, 3))
    assert torch.equal(first, again)
    assert first.shape == (2, 3)
    for key, param in model.named_parameters():
        kept, value = before[key]
        assert param is kept
        assert torch.equal(param, value)


def test_adaptation_equals_a_loop_of_plain_torch(task):
    model = network.conv_net(ways=5, width=4)
    tasks = episodes.stack([task])
    found = network.adaptation(model, network.inner_rule("sgd", LR), tasks, (0, 1, 3))
    params = [adapted(model, task, steps, first_order=True) for steps in (0, 1, 3)]
    wanted = [accuracy(functional_call(model, one, task.query), task) for one in params]
    torch.testing.assert_close(found, torch.tensor([wanted]), check_dtype=False)
    assert found[0, -1] > found[0, 0]


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda model, rule: maml.MAML(model, rule, 2), "sgd"),
        (lambda model, rule: maml.MAML(model, rule, 2), "adam"),
        (
            lambda model, rule: imaml.ImplicitMAML(
                model, rule, 2, pull=1.0, cg_iterations=2, damping=1.0
            ),
            "sgd",
        ),
    ],
)
def test_outer_steps_lower_the_loss_after_adaptation(task, build, name):
    model = network.conv_net(ways=5, width=4)
    algorithm = build(model, network.inner_rule(name, 0.03))
    outer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        outer.zero_grad()
        loss = algorithm([task, task])
        loss.backward()
        outer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_peak_memory_counts_what_lives_at_the_same_time():
    def step():
        kept = torch.ones(1000)
        torch.ones(4000)  # freed at once
        return kept + 1

    assert cost.peak_bytes(step) == 8 * 5000


def test_baselines_solve_a_task_whose_queries_repeat_the_support(task):
    easy = task._replace(query=task.support, query_labels=task.support_labels)
    assert baselines.nearest_neighbour(easy) == 1
    assert baselines.from_scratch(easy, ways=5, width=8) == 1
