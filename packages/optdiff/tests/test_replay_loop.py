# SPDX-License-Identifier: Apache-2.0
"""Replay of an ordinary loop gives the derivatives of the same loop written by hand."""

import re

import pytest
import torch
from torch import nn

import optcore
import optdiff

ROWS, BATCH, STEPS = 12, 4, 9
X = torch.linspace(-2, 2, ROWS * 3, dtype=torch.float64).reshape(ROWS, 3).sin()
Y = (torch.arange(ROWS) * 7 % 5 < 2).long()
BATCHES = optdiff.ShuffledBatches(ROWS, BATCH, seed=3)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), tied())


def tied():
    one = nn.Linear(4, 4)
    return nn.Sequential(one, nn.Tanh(), one)  # the same layer twice


def loss_fn(model, batch, indices, meta):
    x, y = batch
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    return (meta["weights"][indices] * losses).mean()


def new_meta():
    return {
        "weights": torch.linspace(0.5, 1.5, ROWS).requires_grad_(),
        "lr": torch.linspace(0.1, 0.02, STEPS).requires_grad_(),
        "name": torch.zeros(2),
    }


def val_loss_of(model):
    model.eval()
    return nn.functional.cross_entropy(model(X), Y)


def by_hand(transformation_of, meta):
    """The same loop with a Meta optimizer."""
    net = network()
    names, start = zip(*net.named_parameters(), strict=True)
    params, state = dict(net.named_parameters()), None
    for i in range(STEPS):
        rows = BATCHES(i)
        tx = transformation_of(meta, i)
        state = tx.init(params) if state is None else state
        out = torch.func.functional_call(net, params, (X[rows],))
        losses = nn.functional.cross_entropy(out, Y[rows], reduction="none")
        loss = (meta["weights"][rows] * losses).mean()
        found = torch.autograd.grad(loss, tuple(params.values()), create_graph=True)
        updates, state = tx.update(dict(zip(params, found, strict=True)), state, params)
        params = optcore.apply_updates(params, updates)
    net.eval()
    value = nn.functional.cross_entropy(torch.func.functional_call(net, params, (X,)), Y)
    at = [meta["weights"], meta["lr"], *start]
    found = torch.autograd.grad(value, at, materialize_grads=True)
    return value.detach(), found[0], found[1], dict(zip(names, found[2:], strict=True))


def by_replay(optimizer, meta, **options):
    net = network()
    if isinstance(optimizer, type):
        optimizer = optimizer(net.parameters(), lr=0.05)
    loop = optdiff.Replay(
        net, optimizer, (X, Y), loss_fn, meta, num_steps=STEPS, sampler=BATCHES, **options
    )
    value = val_loss_of(loop.run())
    grads = loop.backward(value)
    assert grads["name"] is None
    return value.detach(), grads["weights"], grads["lr"], loop.initial_gradient


ADAMW = optcore.adamw(0.05, eps=1e-3)
CASES = {
    "transformation": (
        optcore.adamw(0.05, eps=1e-3),
        lambda meta, i: optcore.adamw(0.05, eps=1e-3),
    ),
    "rule": (
        lambda meta, i: optcore.sgd(meta["lr"][i], momentum=0.9),
        lambda meta, i: optcore.sgd(meta["lr"][i], momentum=0.9),
    ),
    "torch.optim": (torch.optim.Adam, lambda meta, i: optcore.adam(0.05)),
    "optcore": (optcore.RMSProp, lambda meta, i: optcore.rmsprop(0.05)),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop_by_hand(case):
    optimizer, transformation_of = CASES[case]
    meta = new_meta()
    found, expected = by_replay(optimizer, meta), by_hand(transformation_of, meta)
    assert expected[1].abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


class Examples(torch.utils.data.Dataset):
    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        return X[index], Y[index]


@pytest.mark.parametrize("dataset", [torch.utils.data.TensorDataset(X, Y), Examples()])
def test_data_sets_and_samplers(dataset):
    batches = [BATCHES(i).tolist() for i in range(STEPS)]
    optimizer = optcore.sgd(0.1)
    net = network()
    meta = new_meta()
    loop = optdiff.Replay(
        net, optimizer, dataset, loss_fn, meta, num_steps=STEPS, sampler=batches, offload="disk"
    )
    grads = loop.backward(val_loss_of(loop.run()))
    expected = by_hand(lambda meta, i: optimizer, meta)
    torch.testing.assert_close(grads["weights"], expected[1], rtol=1e-10, atol=1e-14)


def trained(meta=None):
    net = network()
    loop = optdiff.Replay(
        net,
        optcore.sgd(0.1),
        (X, Y),
        loss_fn,
        meta or new_meta(),
        num_steps=STEPS,
        sampler=BATCHES,
    )
    return net, loop


def test_every_run_is_the_same():
    net, loop = trained()
    numbers = []
    for _ in range(2):
        before = torch.get_rng_state()
        value = val_loss_of(loop.run())
        assert torch.equal(torch.get_rng_state(), before)
        numbers.append((value.detach(), loop.backward(value), *map(torch.clone, net.buffers())))
        torch.rand(3)
    torch.testing.assert_close(numbers[0], numbers[1], rtol=0, atol=0)


def test_the_model_is_an_ordinary_one_afterwards():
    net, loop = trained()
    before = list(net.parameters())
    loop.run()
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert net[0].weight.is_leaf
    assert net[1].num_batches_tracked == STEPS


def test_several_losses_of_one_run():
    net, loop = trained()
    loop.run().eval()
    singles = [nn.functional.cross_entropy(net(X[k : k + 1]), Y[k : k + 1]) for k in range(3)]
    single = [loop.backward(loss)["weights"] for loss in singles]
    both = loop.backward(nn.functional.cross_entropy(net(X[:3]), Y[:3], reduction="sum"))
    torch.testing.assert_close(sum(single), both["weights"], rtol=1e-9, atol=1e-14)


def test_a_loss_that_depends_on_meta_by_itself_too():
    _, loop = trained(meta := new_meta())
    value = val_loss_of(loop.run())
    expected = loop.backward(value)["weights"]
    extra = val_loss_of(loop.model) + (3 * meta["weights"]).sum()
    torch.testing.assert_close(loop.backward(extra)["weights"], expected + 3)


def test_frozen_parameters_stay():
    net = network()
    net[0].requires_grad_(False)
    before = net[0].weight.clone()
    meta = new_meta()
    loop = optdiff.Replay(
        net, optcore.sgd(0.1), (X, Y), loss_fn, meta, num_steps=STEPS, sampler=BATCHES
    )
    grads = loop.backward(val_loss_of(loop.run()))
    assert torch.equal(net[0].weight, before)
    assert "0.weight" not in loop.initial_gradient
    assert grads["weights"].abs().max() > 0


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, optcore.SGD])
def test_parameters_that_the_optimizer_does_not_move_are_constants(optimizer):
    def metagradient(frozen):
        net = network()
        net[:4].requires_grad_(not frozen)
        loop = optdiff.Replay(
            net,
            optimizer(net[4].parameters(), lr=0.1),
            (X, Y),
            loss_fn,
            new_meta(),
            num_steps=STEPS,
            sampler=BATCHES,
        )
        return loop.backward(val_loss_of(loop.run())), net[0].weight.detach(), loop.initial_gradient

    found, expected = metagradient(False), metagradient(True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert set(found[2]) == {"4.0.weight", "4.0.bias"}


def test_shuffled_batches():
    batches = optdiff.ShuffledBatches(10, 4, seed=1)
    epochs = [torch.cat([batches(2 * e), batches(2 * e + 1)]) for e in range(3)]
    assert len(batches) == 2
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(batches(1), epochs[0][4:])  # an earlier epoch again
    assert torch.equal(optdiff.ShuffledBatches(10, 4, seed=1)(5), epochs[2][4:])
    assert not torch.equal(optdiff.ShuffledBatches(10, 4, seed=2)(0), batches(2))


def arguments(**changed):
    given = {
        "model": network(),
        "optimizer": optcore.sgd(0.1),
        "dataset": (X, Y),
        "loss_fn": loss_fn,
        "meta": new_meta(),
        "num_steps": STEPS,
        "sampler": BATCHES,
    }
    return given | changed


BAD = [
    ({"model": 3}, TypeError, "Replay: expected an nn.Module, got int"),
    (
        {"model": network().requires_grad_(False)},
        ValueError,
        "Replay: expected parameters that require grad, got none",
    ),
    ({"num_steps": 0}, ValueError, "Replay: expected num_steps >= 1, got 0"),
    ({"checkpoint": 0}, ValueError, "Replay: expected checkpoint >= 1, got 0"),
    (
        {"sampler": [[1, 2]]},
        ValueError,
        "Replay: expected a batch for each of 9 steps, got 1",
    ),
    (
        {"dataset": 3},
        TypeError,
        "Replay: expected a tuple of tensors or a map-style data set, got int",
    ),
    (
        {"optimizer": torch.optim.SGD(network().parameters(), lr=0.1)},
        ValueError,
        "Replay: expected an optimizer of parameters of the module, got others of shapes ",
    ),
    ({"loss_fn": None}, TypeError, "Replay: expected a callable loss_fn(model, batch, indices, m"),
    (
        {"sampler": 5},
        TypeError,
        "Replay: expected a sampler as a function of the step or a sequence of batches, got int; "
        "make a list of what gives batches one by one",
    ),
    ({"progress": "yes"}, TypeError, "Replay: expected progress as True or False, got str"),
    (
        {"optimizer": "adam"},
        TypeError,
        "Replay: expected a torch.optim.Optimizer or a GradientTransformation, got str",
    ),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_arguments(changed, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        optdiff.Replay(**arguments(**changed))


def test_an_optimizer_of_frozen_parameters():
    net = network()
    net[0].requires_grad_(False)
    message = "Replay: expected an optimizer of parameters that require grad, got SGD of none"
    with pytest.raises(ValueError, match="^" + message):
        optdiff.Replay(
            **arguments(model=net, optimizer=torch.optim.SGD(net[0].parameters(), lr=0.1))
        )


@pytest.mark.parametrize("dataset", [(X, Y), Examples()])
@pytest.mark.parametrize(
    ("sampler", "error", "message"),
    [
        (
            lambda i: [0, ROWS],
            ValueError,
            "Replay: expected indices below 12 from sampler, as many as there are examples, got "
            "12, at step 0",
        ),
        (
            lambda i: [-13],
            ValueError,
            "Replay: expected indices below 12 from sampler, as many as ",
        ),
        (
            lambda i: torch.ones(3) / 2,
            TypeError,
            "Replay: expected integers from sampler, got float64[3], at step 0",
        ),
    ],
)
def test_what_a_sampler_gives(dataset, sampler, error, message):
    loop = optdiff.Replay(**arguments(dataset=dataset, sampler=sampler))
    with pytest.raises(error, match="^" + re.escape(message)):
        loop.run()


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (lambda net: 3.0, TypeError, "Replay.backward: expected a tensor, got float"),
        (
            lambda net: net[0].weight,
            ValueError,
            "Replay.backward: expected a scalar loss with a graph, got float64[4, 3]",
        ),
        (
            lambda net: net[0].weight.detach().sum(),
            ValueError,
            "Replay.backward: expected a scalar loss with a graph, got float64[] without one",
        ),
        (
            lambda net: torch.ones((), requires_grad=True) * 2,
            ValueError,
            "Replay.backward: expected a loss of the model, got one that depends on none of its we",
        ),
    ],
)
def test_losses(loss, error, message):
    net, loop = trained()
    loop.run()
    with pytest.raises(error, match="^" + re.escape(message)):
        loop.backward(loss(net))


def test_backward_before_a_run():
    net, loop = trained()
    message = (
        "Replay.backward: expected a model trained with gradients enabled, got none; call run() "
        "first"
    )
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        loop.backward(val_loss_of(net))
    with torch.no_grad():
        loop.run()
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        loop.backward(val_loss_of(net))


def test_other_values_of_meta():
    _, loop = trained()
    _, other = trained(meta := {**new_meta(), "weights": torch.ones(ROWS, requires_grad=True)})
    expected = other.backward(val_loss_of(other.run()))
    torch.testing.assert_close(loop.backward(val_loss_of(loop.run(meta))), expected)
    again = loop.backward(val_loss_of(loop.run()))  # those of the constructor
    _, first = trained()
    torch.testing.assert_close(again, first.backward(val_loss_of(first.run())), rtol=0, atol=0)


def test_weights_that_were_changed_after_the_run():
    net, loop = trained()
    loop.run()
    with torch.no_grad():
        net[0].weight.mul_(2)
    message = (
        "Replay.backward: expected the weights that run() left, got others, at '0.weight'; call "
        "run() again"
    )
    with pytest.raises(RuntimeError, match="^" + re.escape(message)):
        loop.backward(val_loss_of(net))


@pytest.mark.parametrize(("size", "batch_size"), [(0, 1), (4, 0), (4, 5)])
def test_sizes_of_batches(size, batch_size):
    with pytest.raises(ValueError, match=r"^ShuffledBatches: expected (batch_)?size [<>]= \d"):
        optdiff.ShuffledBatches(size, batch_size)


@pytest.mark.parametrize(("terminal", "lines"), [("1", 0), ("", 20)])
def test_progress_in_both_directions(capfd, monkeypatch, terminal, lines):
    """A bar on a terminal, a line for every tenth of the steps in a file."""
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    monkeypatch.setenv("FORCE_COLOR", terminal)
    last = optdiff.replay(
        lambda w, i: w.sin(), torch.ones(1, requires_grad=True), 95, progress=True
    )
    last.backward()
    shown = capfd.readouterr().err
    for words in ("replay: forward", "replay: backward", "95/95", "left"):
        assert words in shown
    assert len(re.findall(r"^replay: \w+ \d+/95, \d+ s, \d+ s left$", shown, re.M)) == lines
