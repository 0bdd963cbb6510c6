# SPDX-License-Identifier: Apache-2.0
"""Steps in place, part by part and repeated from the last one, against steps out of place."""

import copy
import pickle
import weakref

import pytest
import torch
from torch import nn

import optcore

CLASSES = {
    "sgd": (optcore.SGD, optcore.sgd, {}),
    "momentum": (optcore.SGD, optcore.sgd, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (optcore.SGD, optcore.sgd, {"momentum": 0.9, "nesterov": True}),
    "damped": (optcore.SGD, optcore.sgd, {"momentum": 0.9, "dampening": 0.5}),
    "adam": (optcore.Adam, optcore.adam, {"maximize": True, "weight_decay": 0.01}),
    "adam with eps_root": (optcore.Adam, optcore.adam, {"eps_root": 1e-3}),
    "adamw": (optcore.AdamW, optcore.adamw, {"weight_decay": 0.1}),
    "amsgrad": (optcore.AMSGrad, optcore.amsgrad, {}),
    "adabelief": (optcore.AdaBelief, optcore.adabelief, {}),
    "adamax": (optcore.Adamax, optcore.adamax, {}),
    "radam": (optcore.RAdam, optcore.radam, {}),
    "nadam": (optcore.NAdam, optcore.nadam, {}),
    "adan": (optcore.Adan, optcore.adan, {}),
    "yogi": (optcore.Yogi, optcore.yogi, {}),
    "adagrad": (optcore.Adagrad, optcore.adagrad, {"lr_decay": 0.1}),
    "adadelta": (optcore.Adadelta, optcore.adadelta, {}),
    "rmsprop": (optcore.RMSprop, optcore.rmsprop, {"momentum": 0.9, "weight_decay": 0.01}),
    "centered": (optcore.RMSprop, optcore.rmsprop, {"centered": True}),
    "lion": (optcore.Lion, optcore.lion, {"weight_decay": 0.1}),
    "sign_sgd": (optcore.SignSGD, optcore.sign_sgd, {}),
    "lamb": (optcore.Lamb, optcore.lamb, {}),
}
CASES = [pytest.param(*case, id=name) for name, case in CLASSES.items()]


def parameters():
    torch.manual_seed(0)
    shapes = [(3, 2), (4,), (), (0, 2)]
    return [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]


def gradients(params, step, missing=()):
    generator = torch.Generator().manual_seed(step)
    grads = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in params]
    return [None if i in missing else g for i, g in enumerate(grads)]


class Reference:
    """The functional form, out of place."""

    def __init__(self, factory, **hyperparams):
        self.factory, self.hyperparams = factory, {"lr": 0.1, **hyperparams}
        self.params = [p.detach() for p in parameters()]
        self.state = factory(**self.hyperparams).init(self.params)

    def step(self, grads):
        transformation = self.factory(**self.hyperparams)
        updates, self.state = transformation.update(grads, self.state, self.params, inplace=False)
        self.params = optcore.apply_updates(self.params, updates, inplace=False)


def run(optimizer, params, reference, steps, missing=()):
    for step in steps:
        grads = gradients(params, step, missing)
        for param, grad in zip(params, grads, strict=True):
            param.grad = None if grad is None else grad.clone()
        optimizer.step()
        reference.step(grads)
        kept = [None if p.grad is None else p.grad.clone() for p in params]
        torch.testing.assert_close(kept, grads, rtol=0, atol=0)
    torch.testing.assert_close(
        [p.detach() for p in params], reference.params, rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(("cls", "factory", "hyperparams"), CASES)
def test_steps_go_on_whatever_happens_between_them(cls, factory, hyperparams):
    params = parameters()
    optimizer = cls(params, lr=0.1, **hyperparams)
    reference = Reference(factory, **hyperparams)
    run(optimizer, params, reference, range(3))
    run(optimizer, params, reference, range(3, 5), missing=(1,))
    run(optimizer, params, reference, range(5, 7))
    optimizer.param_groups[0]["lr"] = reference.hyperparams["lr"] = 0.03
    run(optimizer, params, reference, range(7, 9))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, reference, range(9, 11))
    optimizer, params = copy.deepcopy((optimizer, params))
    run(optimizer, params, reference, range(11, 13))
    optimizer, params = pickle.loads(pickle.dumps((optimizer, params)))
    run(optimizer, params, reference, range(13, 15))


def step_twice(optimizer, params):
    for step in range(2):
        for param, grad in zip(params, gradients(params, step), strict=True):
            param.grad = grad
        optimizer.step()


def test_a_replaced_buffer_counts():
    params = parameters()
    optimizer = optcore.SGD(params, lr=1.0, momentum=0.5)
    step_twice(optimizer, params)
    optimizer.state[params[1]]["momentum_buffer"] = torch.zeros(4, dtype=torch.float64)
    before, params[1].grad = params[1].detach().clone(), torch.ones(4, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), before - 1.0)


def test_a_buffer_written_to_counts():
    params = parameters()
    optimizer = optcore.SGD(params, lr=1.0, momentum=0.5)
    step_twice(optimizer, params)
    optimizer.state[params[1]]["momentum_buffer"].zero_()
    before, params[1].grad = params[1].detach().clone(), torch.ones(4, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(params[1].detach(), before - 1.0)


def test_a_state_that_was_cleared_starts_over():
    params = parameters()
    optimizer = optcore.Adam(params)
    step_twice(optimizer, params)
    optimizer.state.clear()
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [1, 1, 1, 1]


def test_step_counts_of_parameters_that_move_apart():
    params = parameters()
    optimizer = optcore.Adam(params)
    step_twice(optimizer, params)
    for missing in (0, 1, 1):
        for param, grad in zip(params, gradients(params, 0, (missing,)), strict=True):
            param.grad = grad
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [4, 3, 5, 5]


def test_a_hyperparameter_out_of_range_is_refused_after_good_steps():
    params = parameters()
    optimizer = optcore.Adam(params)
    step_twice(optimizer, params)
    before = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr >= 0, got -1\.0"):
        optimizer.step()
    assert all(map(torch.equal, before, params))


def test_what_a_number_turns_on_after_good_steps():
    params, fresh = parameters(), parameters()
    optimizer = optcore.SGD(params, lr=0.1)
    step_twice(optimizer, params)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    for param, other in zip(params, fresh, strict=True):
        other.data.copy_(param.detach())
        param.grad = other.grad = torch.ones_like(param)
    optimizer.step()
    torch.optim.SGD(fresh, lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(params, fresh)


def test_a_sparse_gradient_is_refused_after_good_steps():
    table = nn.Embedding(3, 2, sparse=False)
    optimizer = optcore.SGD(table.parameters(), lr=0.1)
    table(torch.tensor([0])).sum().backward()
    optimizer.step()
    table.weight.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(TypeError, match="expected dense gradients"):
        optimizer.step()


def test_parameters_that_change_their_dtype():
    net = nn.Linear(2, 2)
    optimizer = optcore.SGD(net.parameters(), lr=0.5)
    for dtype in (torch.float32, torch.float64):
        net.to(dtype)
        for param in net.parameters():
            param.grad = torch.ones_like(param)
        before = [p.detach().clone() for p in net.parameters()]
        optimizer.step()
        for old, param in zip(before, net.parameters(), strict=True):
            torch.testing.assert_close(param.detach(), old - 0.5)


def test_no_gradient_is_held_after_a_step():
    param = nn.Parameter(torch.ones(3))
    optimizer = optcore.Adam([param])
    released = []
    for _ in range(3):
        param.grad = torch.ones(3)
        optimizer.step()
        reference = weakref.ref(param.grad)
        optimizer.zero_grad(set_to_none=True)
        released.append(reference() is None)
    assert released == [True, True, True]


CHAINS = {
    "clip between": (
        optcore.trace(0.9),
        optcore.clip_by_global_norm(0.5),
        optcore.scale_by_adam(),
        optcore.add_decayed_weights(0.1),
        optcore.scale(-0.1),
    ),
    "chain in chain": (optcore.chain(optcore.scale(2.0), optcore.trace(0.9)), optcore.scale(-0.1)),
    "decay of a quotient": (
        optcore.scale_by_rms(),
        optcore.add_decayed_weights(0.1),
        optcore.trace(0.5),
        optcore.add_decayed_weights(0.2),
    ),
    "decay of a plain gradient": (optcore.add_decayed_weights(0.1), optcore.scale_by_adan()),
    "masked decay": (
        optcore.scale_by_lion(),
        optcore.add_decayed_weights(0.1, [True, False, True, True, False]),
        optcore.scale(0.3),
    ),
    "schedule": (optcore.scale_by_adam(), optcore.scale_by_schedule(lambda t: 1.0 / (1 + t))),
    "tensor rate": (optcore.scale_by_adam(), optcore.scale(torch.tensor(0.1))),
    "rate per leaf": (optcore.scale_by_adam(), optcore.scale([0.1, 0.2, 0.3, 0.4, 0.5])),
    "identity": (optcore.identity(),),
    "momentum alone": (optcore.trace(0.9),),
}
DTYPES = {
    "float64": [torch.float64] * 5,
    "mixed": [torch.float32, torch.float64, torch.float32, torch.float64, torch.float64],
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("members", CHAINS.values(), ids=CHAINS)
def test_in_place_and_out_of_place_are_one_function(members, dtypes):
    torch.manual_seed(0)
    sizes = (70_000, 3, 70_000, 2, 200_000)  # more than one part, and more than a part
    params = [torch.randn(n, dtype=d) for n, d in zip(sizes, dtypes, strict=True)]
    transformation = optcore.chain(*members)
    there, here = transformation.init(params), transformation.init(params)
    for _ in range(2):
        grads = [torch.randn_like(p) for p in params]
        kept = [g.clone() for g in grads]
        updates, there = transformation.update(grads, there, params, inplace=True)
        expected, here = transformation.update(grads, here, params, inplace=False)
        assert all(map(torch.equal, grads, kept))
        torch.testing.assert_close(updates, expected)
        torch.testing.assert_close(
            optcore.tree_flatten_as_tuple(there)[0], optcore.tree_flatten_as_tuple(here)[0]
        )


def test_updates_in_place_outlive_the_next_step():
    params = [torch.ones(3, dtype=torch.float64)]
    for transformation in (optcore.trace(0.9), optcore.sgd(0.1, momentum=0.9), optcore.adam()):
        state = transformation.init(params)
        grads = [torch.ones(3, dtype=torch.float64)]
        first, state = transformation.update(grads, state, params, inplace=True)
        kept = first[0].clone()
        transformation.update(grads, state, params, inplace=True)
        assert torch.equal(first[0], kept)
