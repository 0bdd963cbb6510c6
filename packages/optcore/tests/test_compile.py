# SPDX-License-Identifier: Apache-2.0
"""A compiled update breaks no graph, compiles at most twice and gives the eager numbers."""

from functools import partial

import pytest
import torch

import optcore
import treeops

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
)

STEPS = 20
MIXED = {"w": (3, 4), "rest": [()]}
MATRICES = {"w": (3, 4), "rest": [(4, 3)]}

SCHEDULE = optcore.linear_schedule(0.1, 0.01, 10)
MASK = {"w": True, "rest": [False]}
LABELS = {"w": "slow", "rest": ["fast"]}
GROUPS = {"slow": optcore.lion(0.01), "fast": optcore.sgd(0.1)}


def below_five(count):
    return count < 5


TRANSFORMATIONS = {
    "lbfgs without a search": optcore.lbfgs(0.1, memory_size=3, linesearch=None),
    "clip, adam, schedule": optcore.chain(optcore.clip_by_global_norm(1.0), optcore.adam(SCHEDULE)),
    "sgd with everything": optcore.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adamw of some": optcore.adamw(0.1, mask=MASK),
    "a tree": optcore.sgd({"w": 0.1, "rest": torch.tensor(0.2).double()}),
    "scheduled in Python": optcore.sgd(lambda count: 0.1 / (1 + count)),
    "masked": optcore.masked(optcore.sgd(0.1, momentum=0.9), MASK),
    "partition": optcore.partition(GROUPS, LABELS),
    "flatten": optcore.flatten(optcore.sgd(0.1, momentum=0.9)),
    "inject_hyperparams": optcore.inject_hyperparams(optcore.sgd)(lr=SCHEDULE),
    "multi_steps": optcore.multi_steps(optcore.sgd(0.1, momentum=0.9), 3),
    "apply_if_finite": optcore.apply_if_finite(optcore.sgd(0.1, momentum=0.9), 3),
    "conditionally_mask": optcore.conditionally_mask(optcore.sgd(0.1), below_five),
    "add_noise": optcore.add_noise(0.1, 0.5, 0),
    "sam": optcore.sam(optcore.adam(0.1), optcore.chain(optcore.normalize(), optcore.sgd(0.1))),
}
TOLD = {name: row.factory() for name, row in optcore.INFORMED_OPTIMIZERS.items()}
TOLD["reduce_on_plateau"] = optcore.reduce_on_plateau(0.5, patience=1)
SCHEDULES = {
    "cosine": optcore.warmup_cosine_decay_schedule(0.0, 0.1, 5, 15),
    "exponential": optcore.exponential_decay(0.1, 5, 0.5, staircase=True),
    "one cycle": optcore.cosine_onecycle_schedule(STEPS, 0.1),
    "piecewise": optcore.piecewise_interpolate_schedule("linear", 0.1, {5: 0.5, 10: 0.5}),
    "joined": optcore.join_schedules([optcore.constant_schedule(0.1), SCHEDULE], [5]),
}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Compiler:
    """``torch.compile`` that counts its graphs and runs them as they are."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, function):
        return torch.compile(function, fullgraph=True, backend=self.run_as_is)

    def run_as_is(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def sample(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return treeops.tree_map(
        lambda shape: torch.randn(shape, generator=generator),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def take_step(transformation, params, state, grads):
    updates, state = transformation.update(grads, state, params)
    return optcore.apply_updates(params, updates), state


def run(step, transformation, shapes=MIXED):
    params = sample(shapes, 0)
    state = transformation.init(params)
    for index in range(STEPS):
        params, state = step(params, state, sample(shapes, 1 + index))
    return params, state


def close(found, expected):
    ours, structure = treeops.tree_flatten(found)
    theirs, expected_structure = treeops.tree_flatten(expected)
    assert structure == expected_structure
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def same_compiled(transformation, shapes=MIXED):
    step = partial(take_step, transformation)
    compiler = Compiler()
    close(run(compiler(step), transformation, shapes), run(step, transformation, shapes))
    assert 1 <= compiler.graphs <= 2


@pytest.mark.parametrize("name", optcore.OPTIMIZERS)
def test_every_optimizer(name):
    shapes = {"muon": MATRICES}.get(name, MIXED)
    same_compiled(optcore.OPTIMIZERS[name].factory(), shapes)


def objective(params):
    return params["w"].cos().sum() + params["rest"][0].square()


@pytest.mark.parametrize("transformation", TOLD.values(), ids=TOLD)
def test_every_optimizer_that_is_told_of_the_loss(transformation):

    def step(params, state, grads):
        extra = {"value": objective(params), "obj_fn": objective}
        updates, state = transformation.update(grads, state, params, **extra)
        return optcore.apply_updates(params, updates), state

    compiler = Compiler()
    close(run(compiler(step), transformation), run(step, transformation))
    assert 1 <= compiler.graphs <= 2


@pytest.mark.parametrize("transformation", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_transformations(transformation):
    same_compiled(transformation)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_schedules(schedule):
    same_compiled(optcore.scale_by_schedule(schedule))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Inductor's own
def test_inductor():
    transformation = TRANSFORMATIONS["clip, adam, schedule"]
    step = partial(take_step, transformation)
    compiled = torch.compile(step, fullgraph=True)
    close(run(compiled, transformation), run(step, transformation))


def test_init_and_the_gradients_too():
    transformation = optcore.adamw(0.1)

    def loss(params, x):
        return (params["w"] @ x).pow(4).sum() + (params["b"] - 1).square().sum()

    def step(params, state, x):
        grads = torch.func.grad(loss)(params, x)
        return take_step(transformation, params, state, grads)

    def train(wrap):
        params = sample({"w": (3, 4), "b": (3,)}, 0)
        state = wrap(transformation.init)(params)
        wrapped = wrap(step)
        for index in range(STEPS):
            params, state = wrapped(params, state, sample((4,), 1 + index))
        return params

    compiler = Compiler()
    close(train(compiler), train(lambda function: function))
    assert compiler.graphs == 2


def test_after_a_module_is_called_with_other_parameters():
    net = torch.nn.Linear(4, 3).double()
    transformation = optcore.adamw(0.1)

    def loss(params, x):
        return torch.func.functional_call(net, params, (x,)).square().sum()

    def step(params, state, x):
        return take_step(transformation, params, state, torch.func.grad(loss)(params, x))

    params = {name: p.detach() for name, p in net.named_parameters()}
    given = params, transformation.init(params), sample((4,), 1)
    compiler = Compiler()
    close(compiler(step)(*given)[0], step(*given)[0])
    assert compiler.graphs == 1


def test_vmap_over_tasks():
    transformation = optcore.adam(0.1)

    def task(params, grads):
        return take_step(transformation, params, transformation.init(params), grads)[0]

    step = torch.func.vmap(task)
    batch = sample({"w": (7, 3, 4), "b": (7, 3)}, 0), sample({"w": (7, 3, 4), "b": (7, 3)}, 1)
    close(Compiler()(step)(*batch), step(*batch))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # looked at by torch itself
def test_learned_learning_rate():
    def step(params, state, grads, lr):
        return take_step(optcore.adam(lr), params, state, grads)

    def derivative(wrap):
        lr = torch.tensor(0.1, requires_grad=True)
        wrapped = wrap(step)
        params, _ = run(lambda p, s, g: wrapped(p, s, g, lr), optcore.adam())
        return torch.autograd.grad(params["w"].square().sum(), lr)

    compiler = Compiler()
    close(derivative(compiler), derivative(lambda function: function))
    assert compiler.graphs == 2  # the first parameters do not require grad, all others do


def test_counts_stay_shared():
    transformation = optcore.scale_by_adam()
    _, state = run(Compiler()(partial(take_step, transformation)), transformation)
    counts = treeops.tree_leaves(state.count)
    assert counts[0] == STEPS
    assert all(count is counts[0] for count in counts)


def test_missing_gradients_compile_once_each():
    transformation = optcore.scale_by_adam()
    compiler = Compiler()
    eager = partial(take_step, transformation)
    compiled = compiler(eager)

    def train(step):
        params = sample(MIXED, 0)
        state = transformation.init(params)
        for index in range(STEPS):
            grads = sample(MIXED, index)
            grads = [grads, grads | {"w": None}][index % 2]
            params, state = step(params, state, grads)
        return params, state

    close(train(compiled), train(eager))
    assert compiler.graphs == 4  # with and without, before and after the counts have parted


def test_optimizer_class_with_groups_and_a_changing_rate():
    def train(wrap):
        parameters = [torch.nn.Parameter(p) for p in treeops.tree_leaves(sample(MIXED, 0))]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.3}]
        optimizer = optcore.RMSprop(groups, lr=0.1)
        step = wrap(optimizer.step)
        for index in range(STEPS):
            for p, grad in zip(parameters, treeops.tree_leaves(sample(MIXED, 1 + index))):
                p.grad = grad
            step()
            for group in optimizer.param_groups:  # as a scheduler does
                group["lr"] *= 0.9
        return parameters

    compiler = Compiler()
    close(train(compiler), train(lambda function: function))
    assert compiler.graphs <= 2


def test_gradients_unlike_parameters_stop_the_compilation():
    transformation = optcore.adamw(0.1)
    params = sample(MIXED, 0)
    state = transformation.init(params)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="with the same keys"):
        Compiler()(partial(take_step, transformation))(params, state, {"w": params["w"]})


def test_missing_params_stop_the_compilation():
    transformation = optcore.adamw(0.1)
    params = sample(MIXED, 0)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="adamw: expected params, got None"):
        Compiler()(transformation.update)(params, transformation.init(params))
