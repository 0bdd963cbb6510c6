# SPDX-License-Identifier: Apache-2.0
"""Classes around any optimizer: what they refuse, and when; groups, memory, compiled steps."""

import copy
import re
import weakref

import pytest
import torch

import optcore
import treeops

injected_sgd = optcore.inject_hyperparams(optcore.sgd)


def ones(n=2):
    return torch.nn.Parameter(torch.ones(n))


def plateau(**options):
    return optcore.reduce_on_plateau(**options)


def told():
    momentum = optcore.trace(0.9)
    return {
        "chain": optcore.chain(optcore.adam(), plateau()),
        "polyak": optcore.chain(momentum, optcore.polyak_sgd()),
        "injected": optcore.chain(momentum, optcore.inject_hyperparams(optcore.polyak_sgd)(lr=1.0)),
        "masked": optcore.chain(momentum, optcore.masked(plateau(), [True])),
        "named": optcore.named_chain(("first", momentum), ("second", plateau())),
        "partition": optcore.partition({"a": optcore.chain(momentum, plateau())}, ["a"]),
        "flatten": optcore.flatten(optcore.chain(momentum, plateau())),
    }


BAD = {"missing": {}, "string": {"value": "low"}, "vector": {"value": torch.ones(2)}}


def tensors(tree):
    return [leaf.clone() for leaf in treeops.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("extra", BAD.values(), ids=BAD)
@pytest.mark.parametrize("tx", told().values(), ids=told())
@pytest.mark.parametrize("how", ["update", "step"])
def test_a_loss_that_is_none_is_refused_before_anything_changes(how, tx, extra):
    params, grads = [torch.ones(2)], [torch.ones(2)]
    state = tx.init(params)
    before = tensors((params, state))
    with pytest.raises(TypeError, match=r"^(scale_by_polyak|reduce_on_plateau): expected value= ?"):
        getattr(tx, how)(grads, state, params, inplace=True, **extra)
    assert all(map(torch.equal, tensors((params, state)), before))


@pytest.mark.parametrize("extra", BAD.values(), ids=BAD)
@pytest.mark.parametrize(
    "make",
    [
        lambda w: optcore.ReduceOnPlateau([w], optcore.adam()),
        lambda w: optcore.Optimizer([w], told()["polyak"]),
        lambda w: optcore.PolyakSGD([w]),
    ],
)
def test_a_class_that_is_not_told_the_loss_is_as_before(make, extra):
    w = ones()
    optimizer = make(w)
    w.grad = torch.ones(2)
    optimizer.step(value=torch.tensor(3.0))
    before, moved = copy.deepcopy(optimizer.state_dict()), w.detach().clone()
    with pytest.raises(TypeError, match=r"expected value="):
        optimizer.step(**extra)
    assert str(optimizer.state_dict()) == str(before)
    assert torch.equal(w.detach(), moved)


def test_what_sam_calls_in_opaque_mode_is_asked_first():
    uphill = optcore.chain(optcore.normalize(), optcore.sgd(lr=0.1))
    tx = optcore.sam(optcore.chain(optcore.trace(0.9), plateau()), uphill, opaque_mode=True)
    params, calls = [torch.ones(2)], []
    with pytest.raises(TypeError, match=r"^reduce_on_plateau: expected value=, got None"):
        tx.update(params, tx.init(params), params, grad_fn=lambda *_: calls.append(1))
    with pytest.raises(TypeError, match=r"^sam: expected grad_fn= with opaque_mode=True, got int"):
        tx.update(params, tx.init(params), params, grad_fn=3, value=1.0)
    assert not calls


def test_every_group_of_a_plateau_hears_every_loss():
    a, b = ones(), ones()
    groups = [{"params": [a]}, {"params": [b]}]
    optimizer = optcore.ReduceOnPlateau(groups, optcore.adam(0.1), factor=0.5, patience=1)
    for index in range(6):
        a.grad, b.grad = torch.ones(2), [torch.ones(2), None][0 < index < 5]
        optimizer.step(value=3.0)
    first, second = (group["shared_state"] for group in optimizer.param_groups)
    assert first == second
    assert first["1.scale"] == 0.5**5
    steps = 0.1 * (1 + 0.5**5)  # Adam's, of gradients that stay as they are: the first and last
    torch.testing.assert_close(b.detach(), torch.ones(2) - steps)


@pytest.mark.parametrize("rho", [-1, float("nan"), "a", None])
def test_sam_refuses_a_radius_that_was_set_later(rho):
    a, b = ones(), ones()
    optimizer = optcore.SAM([{"params": [a]}, {"params": [b]}], optcore.sgd(0.1))
    calls = []
    optimizer.param_groups[1]["rho"] = rho
    with pytest.raises(
        (TypeError, ValueError), match=r"^SAM.step: expected rho of group 1 (as|>=)"
    ):
        optimizer.step(lambda: calls.append(1))
    assert not calls


def test_sam_goes_on_in_functional_form():
    w, start = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double()), 0.3
    optimizer = optcore.SAM([w], optcore.inject_hyperparams(optcore.adam)(lr=0.1), rho=start)
    optimizer.param_groups[0]["rho"] = 0.7

    def closure():
        w.grad = 4 * w.detach() ** 3 + 2

    for _ in range(3):
        optimizer.step(closure)
    tx, state = optimizer.functional({"w": w})
    params = {"w": w.detach().clone()}
    for _ in range(3):
        optimizer.step(closure)
        grads = {"w": 4 * params["w"] ** 3 + 2}
        updates, state = tx.update(
            grads, state, params, grad_fn=lambda at, i: {"w": 4 * at["w"] ** 3 + 2}
        )
        params = optcore.apply_updates(params, updates)
    torch.testing.assert_close(params["w"], w.detach(), rtol=1e-13, atol=1e-13)


def test_the_second_pass_of_sam_finds_the_memory_of_the_ascent_free():
    w, kept = torch.nn.Parameter(torch.ones(4)), []

    class Seen(torch.Tensor):
        """Tensors made from such a gradient are such tensors too."""

        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            result = super().__torch_function__(func, types, args, kwargs or {})
            made.extend(weakref.ref(t) for t in [result] if isinstance(t, cls))
            return result

    made = []

    def closure():
        w.grad = None
        kept.append(sum(ref() is not None for ref in made))
        w.grad = torch.ones(4).as_subclass(Seen)
        made.append(weakref.ref(w.grad))

    optcore.SAM([w], optcore.sgd(0.1)).step(closure)
    assert len(made) > 2  # a gradient, what came of it, the gradient of the second pass
    assert kept == [0, 0]


GROUPS = [
    (
        lambda: optcore.SAM([{"params": [ones()], "lr": 5.0}], optcore.sgd(0.1)),
        "SAM: expected a group with entries among ['params', 'rho'], got lr, at group 0; only what",
    ),
    (
        lambda: optcore.ReduceOnPlateau([{"params": [ones()], "factor": 7}], optcore.sgd()),
        "ReduceOnPlateau: expected a group with entries among ['params'], got factor, at group 0",
    ),
    (
        lambda: optcore.Optimizer(
            [{"params": [ones()]}, {"params": [ones()], "betas": (0.5, 0.9)}], injected_sgd(lr=0.1)
        ),
        "Optimizer: expected a group with entries among ['params', 'lr'], got betas, at group 1;",
    ),
    (
        lambda: optcore.SAM([ones()], injected_sgd(lr=0.1)).add_param_group(
            {"params": [ones()], "lr": -1}
        ),
        "sgd: expected lr >= 0, got -1",
    ),
    (
        lambda: optcore.Optimizer(
            [{"params": [ones()], "lr": 0.1}], injected_sgd(lr=optcore.constant_schedule(0.1))
        ),
        "Optimizer: expected no lr in a group, got float; the base has a schedule of it: give lr",
    ),
    (
        lambda: optcore.SAM([{"params": [p]} for p in (ones(), ones())], optcore.sgd()).functional(
            [ones()]
        ),
        "SAM.functional: expected one group, whose gradients have one norm, got 2; make opt",
    ),
]


@pytest.mark.parametrize(("call", "message"), GROUPS)
def test_groups_say_nothing_that_nobody_reads(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        call()


def test_a_group_that_is_refused_leaves_the_optimizer_as_it_was():
    optimizer = optcore.SAM([ones()], injected_sgd(lr=0.1))
    with pytest.raises(ValueError, match="expected lr >= 0"):
        optimizer.add_param_group({"params": [ones()], "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_a_group_may_hold_what_is_no_hyperparameter():
    group = {"params": [ones()], "name": "head", "initial_lr": 0.1}
    assert optcore.Optimizer([group], optcore.sgd()).param_groups[0]["name"] == "head"


RATELESS = {
    "plateau": lambda w: optcore.ReduceOnPlateau([w], optcore.adam(0.1), factor=0.5, patience=1),
    "any": lambda w: optcore.Optimizer([w], optcore.adam(0.1)),
    "scheduled": lambda w: optcore.Adam([w], lr=optcore.exponential_decay(0.1, 1, 0.5)),
    "sam": lambda w: optcore.SAM([w], optcore.adam(0.1), rho=0.5),
    "sam injected": lambda w: optcore.SAM([w], injected_sgd(lr=0.1), rho=0.5),
}


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
)
@pytest.mark.parametrize("make", RATELESS.values(), ids=RATELESS)
def test_classes_without_a_rate_in_their_groups_compile(make):
    def train(wrap):
        w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
        optimizer = make(w)

        def closure():
            w.grad = 4 * w.detach() ** 3
            return (w.detach() ** 4).sum() + 100

        step = wrap(lambda: optimizer.step(closure))
        for _ in range(4):
            step()
        return w.detach()

    torch.compiler.reset()
    compiled = train(lambda f: torch.compile(f, fullgraph=True, backend="eager"))
    torch.testing.assert_close(compiled, train(lambda f: f), rtol=1e-6, atol=1e-6)
