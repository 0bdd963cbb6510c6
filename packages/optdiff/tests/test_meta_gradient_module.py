# SPDX-License-Identifier: Apache-2.0
"""What belongs to the outer loop and what to the inner one, and that it is never guessed."""

import copy
import io
import re

import pytest
import torch
from torch import nn

import optdiff
from optdiff.nn import MetaGradientModule


class Inner(MetaGradientModule):
    def __init__(self, meta_net, decay, scale=None):
        super().__init__()
        self.meta_net = meta_net
        self.decay = decay
        self.scale = scale
        self.head = nn.Linear(2, 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.head(self.meta_net(x)) + self.bias


class AsListed(MetaGradientModule):
    def __init__(self, meta_param):
        self.meta_param = meta_param
        self.x = nn.Parameter(torch.zeros(()))


def inner(**options):
    return Inner(nn.Linear(3, 2), torch.ones((), requires_grad=True), **options)


def names(pairs):
    return [name for name, _ in pairs]


def test_inner_and_outer_loop_are_apart():
    meta_net, decay = nn.Linear(3, 2).eval(), torch.ones((), requires_grad=True)
    module = Inner(meta_net, decay)
    assert names(module.named_parameters()) == ["bias", "head.weight", "head.bias"]
    assert names(module.named_meta_parameters()) == ["decay", "meta_net.weight", "meta_net.bias"]
    assert next(module.meta_parameters()) is decay
    assert names(module.named_meta_parameters("a", recurse=False)) == ["a.decay"]
    assert [*module.meta_children()] == [*module.meta_modules()] == [meta_net]
    assert names(module.named_meta_modules(prefix="a")) == ["a.meta_net"]
    assert names(module.named_children()) == ["head"]
    assert module.decay is decay
    assert module.meta_net is meta_net
    assert {"decay", "meta_net"} <= {*dir(module)}


def test_the_constructor_of_the_listing_needs_no_super():
    meta = torch.ones((), requires_grad=True)
    module = AsListed(meta)
    assert names(module.named_parameters()) == ["x"]
    assert [*module.meta_parameters()] == [meta]


def test_a_meta_optimizer_moves_the_inner_parameters_only():
    module = inner()
    before = module.meta_net.weight
    optimizer = optdiff.MetaSGD(module, lr=0.1)
    optimizer.step(module(torch.ones(4, 3)).square().mean() * module.decay)
    assert module.meta_net.weight is before
    outer = module(torch.ones(4, 3)).mean()
    found = torch.autograd.grad(outer, [*module.meta_parameters()])
    assert all(grad.abs().max() > 0 for grad in found)


def test_names_are_kept_when_the_value_changes():
    module = inner()
    other = module.decay * 2
    module.decay = other
    module.meta_net = nn.Linear(3, 2)
    assert names(module.named_meta_parameters()) == ["decay", "meta_net.weight", "meta_net.bias"]
    assert module.decay is other
    module.decay = None
    del module.meta_net
    assert [*module.meta_parameters()] == []
    assert not hasattr(module, "meta_net")


def test_registration():
    module = inner()
    tensor = torch.ones(2, requires_grad=True)
    module.register_meta_parameter("late", tensor * 2)
    module.register_meta_module("later", nn.Linear(1, 1))
    module.register_meta_parameter("none", None)
    module.register_module("own", nn.Linear(1, 1))
    module.register_buffer("data", torch.ones(3))
    assert names(module.named_meta_parameters())[:2] == ["decay", "late"]
    assert names(module.named_meta_children()) == ["meta_net", "later"]
    assert "own.weight" in names(module.named_parameters())


def test_meta_parameters_of_submodules():
    outer = nn.Sequential(inner())
    whole = AsListed(torch.ones((), requires_grad=True))
    whole.part = outer
    assert names(whole.named_meta_parameters()) == [
        "meta_param",
        "part.0.decay",
        "part.0.meta_net.weight",
        "part.0.meta_net.bias",
    ]
    assert "part.0.decay" in whole.state_dict(meta=True)


def test_state_dict_on_request():
    module, other = inner(), inner()
    own = module.state_dict()
    whole = module.state_dict(meta=True)
    assert {*whole} - {*own} == {"decay", "meta_net.weight", "meta_net.bias"}
    decay, weight = other.decay, other.meta_net.weight
    other.load_state_dict({name: value + 1 for name, value in whole.items()}, meta=True)
    assert other.decay is decay
    assert decay == 2
    assert (weight == module.meta_net.weight + 1).all()
    other.load_state_dict(own)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(whole)


def test_to_on_request():
    module = inner()
    decay, weight = module.decay, module.meta_net.weight
    module.to(torch.float32)
    assert (module.head.weight.dtype, decay.dtype) == (torch.float32, torch.float64)
    assert module.to(torch.float32, meta=True) is module
    assert (decay.dtype, weight.dtype) == (torch.float32, torch.float32)
    assert module.decay is decay
    assert names(module.named_parameters()) == ["bias", "head.weight", "head.bias"]


def test_copies():
    module = inner(scale=3)
    twin = copy.deepcopy(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (twin, torch.load(file, weights_only=False)):
        assert names(other.named_meta_parameters()) == names(module.named_meta_parameters())
        assert other.decay is not module.decay
        assert (other(torch.ones(1, 3)) == module(torch.ones(1, 3))).all()


def test_a_copy_does_not_need_what_the_constructor_did_not_keep():
    class Value(MetaGradientModule):
        def __init__(self, tensor):
            self.size = len(tensor)

    assert copy.deepcopy(Value(torch.ones(3, requires_grad=True) * 2)).size == 3


def test_a_copy_after_a_meta_step():
    module = inner()
    optdiff.MetaSGD(module, lr=0.1).step(module(torch.ones(4, 3)).square().mean())
    twin = copy.deepcopy(module)
    assert names(twin.named_meta_parameters()) == ["decay", "meta_net.weight", "meta_net.bias"]
    assert (twin(torch.ones(1, 3)) == module(torch.ones(1, 3))).all()


def test_under_transforms():
    def outer(decay, x):
        module = AsListed(decay)
        return (module.meta_param * x).sum()

    tasks = torch.arange(3.0)
    each = torch.func.vmap(outer, (None, 0))
    found = torch.func.grad(lambda decay: each(decay, tasks).sum())(torch.ones(()))
    assert found == 3


class Assigns(MetaGradientModule):
    def __init__(self, *given, assign):
        super().__init__()
        assign(self, *given)


def leaf():
    return torch.ones(3, requires_grad=True)


def assigned(name):
    return lambda module, *values: setattr(module, name, values[0])


REFUSED = [
    (
        [torch.ones(3)],
        assigned("a"),
        ValueError,
        "Assigns.assignment: expected a meta-parameter that requires grad, got f32[3] that does "
        "not, at 'a'; call its requires_grad_() first, or register_buffer if it is data",
    ),
    (
        [],
        lambda module: setattr(module, "a", leaf()),
        ValueError,
        "Assigns.assignment: expected an nn.Parameter or a tensor given to the constructor, got "
        "another f64[3] that requires grad, at 'a'; call register_meta_parameter, or wrap it in",
    ),
    (
        [leaf()],
        lambda module, value: setattr(module, "a", {"b": [value]}),
        ValueError,
        "Assigns.assignment: expected meta-parameters and meta-modules as attributes of their own",
    ),
    (
        [nn.Linear(1, 1)],
        lambda module, value: setattr(module, "a", nn.Sequential(value)),
        ValueError,
        "Assigns.assignment: expected a module of its own, got Sequential with parts given to the "
        "constructor, at 'a'; call register_meta_module",
    ),
    (
        [nn.Linear(1, 1)],
        lambda module, value: module.add_module("a", value),
        ValueError,
        "Assigns.add_module: expected a module of its own, got Linear with parts given to the con",
    ),
    (
        [nn.Parameter(torch.ones(1))],
        lambda module, value: module.register_parameter("a", value),
        ValueError,
        "Assigns.register_parameter: expected a parameter of its own, got one given to the constr",
    ),
    (
        [],
        lambda module: module.register_meta_parameter("a", 3),
        TypeError,
        "Assigns.register_meta_parameter: expected a tensor for a meta-parameter, got int, at 'a'",
    ),
    (
        [],
        lambda module: module.register_meta_parameter("a", torch.ones(1)),
        ValueError,
        "Assigns.register_meta_parameter: expected a meta-parameter that requires grad, got f64[1",
    ),
    (
        [],
        lambda module: module.add_meta_module("a", 3),
        TypeError,
        "Assigns.add_meta_module: expected a module, got int, at 'a'",
    ),
    (
        [],
        lambda module: module.add_meta_module(3, nn.Linear(1, 1)),
        TypeError,
        "Assigns.add_meta_module: expected a string, got int",
    ),
    (
        [],
        lambda module: module.register_meta_parameter("a.b", leaf()),
        KeyError,
        "Assigns.register_meta_parameter: expected a name without dots, got 'a.b'",
    ),
    (
        [],
        lambda module: module.register_meta_parameter("training", leaf()),
        KeyError,
        "Assigns.register_meta_parameter: expected a new name, got 'training', which is taken",
    ),
]


@pytest.mark.parametrize(("given", "assign", "error", "message"), REFUSED)
def test_refused(given, assign, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Assigns(*given, assign=assign)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: setattr(m, "decay", 3), TypeError, "expected a tensor for a meta-parameter, go"),
        (lambda m: setattr(m, "meta_net", 3), TypeError, "expected a module or None for a meta-mo"),
        (
            lambda m: m.load_state_dict(m.state_dict(meta=True), assign=True, meta=True),
            ValueError,
            "expected assign=False with meta=True, got True",
        ),
    ],
)
def test_a_refused_change_changes_nothing(change, error, message):
    module = inner()
    before = dict(module.named_meta_parameters())
    with pytest.raises(error, match=f"Inner.*: {message}"):
        change(module)
    after = dict(module.named_meta_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)


def test_a_computed_meta_parameter_cannot_move_in_place():
    module = inner()
    module.decay = module.decay * 2
    with pytest.raises(ValueError, match=r"Inner\.to: expected meta-parameters without a graph"):
        module.to(torch.float32, meta=True)
    assert module.head.weight.dtype is torch.float64
