# SPDX-License-Identifier: Apache-2.0
"""What belongs to the outer loop and what to the inner one, and that it is never guessed."""

import copy
import io
import re
import types
import weakref

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


class Outer(MetaGradientModule):
    """The outer loop of an outer loop: all of the inner module belongs to it."""

    def __init__(self, given):
        super().__init__()
        self.inner = given
        self.own = nn.Parameter(torch.zeros(()))


NESTED = [
    "inner.bias",
    "inner.decay",
    "inner.head.weight",
    "inner.head.bias",
    "inner.meta_net.weight",
    "inner.meta_net.bias",
]


def test_all_of_a_meta_module_is_meta():
    module, other = Outer(inner()), Outer(inner())
    assert names(module.named_parameters()) == ["own"]
    assert sorted(names(module.named_meta_parameters())) == sorted(NESTED)
    assert names(module.named_meta_modules()) == ["inner", "inner.head", "inner.meta_net"]
    assert module.state_dict(meta=True).keys() == {"own", *NESTED}
    other.load_state_dict(module.state_dict(meta=True), meta=True)
    assert (other.inner.meta_net.weight == module.inner.meta_net.weight).all()
    module.to(torch.float32, meta=True)
    assert {param.dtype for param in module.meta_parameters()} == {torch.float32}
    assert module.inner.state_dict().keys() == {"bias", "head.weight", "head.bias"}


def test_modes_and_flags_are_those_of_the_inner_loop():
    module = inner().eval().requires_grad_(False)
    assert (module.head.training, module.meta_net.training) == (False, True)
    assert all(param.requires_grad for param in module.meta_parameters())


def test_repr():
    module = Outer(inner())
    module.part = nn.Linear(1, 1)
    assert (
        repr(module)
        == """\
Outer(
  meta (inner): Inner(
    meta (decay): f64[]
    meta (meta_net): Linear(in_features=3, out_features=2, bias=True)
    (head): Linear(in_features=2, out_features=1, bias=True)
  )
  (part): Linear(in_features=1, out_features=1, bias=True)
)"""
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda values, at: torch.stack([at(value) for value in values]),
        lambda values, at: torch.vmap(at)(values),
        lambda values, at: torch.stack([torch.func.grad_and_value(at)(v)[1] for v in values]),
    ],
    ids=["plain", "vmap", "grad"],
)
def test_functional_call_with_other_meta_parameters(call):
    class Scaled(AsListed):
        def forward(self):
            return self.meta_param * 3 + self.x

    given = torch.ones((), requires_grad=True)
    module = Scaled(given)
    values = torch.tensor([2.0, 4.0])
    found = call(values, lambda v: torch.func.functional_call(module, {"meta_param": v}, ()))
    assert found.tolist() == [6.0, 12.0]
    assert module.meta_param is given


def test_another_module_class_beside_it_gets_its_arguments():
    class Layers(MetaGradientModule, nn.Sequential):
        def __init__(self):
            super().__init__(nn.Linear(2, 1))

    assert names(Layers().named_parameters()) == ["0.weight", "0.bias"]


def test_what_was_given_and_not_kept_is_freed():
    given, tensor = nn.Linear(1, 1), torch.ones(1, requires_grad=True)
    alive = [weakref.ref(given), weakref.ref(tensor), weakref.ref(given.weight)]
    module = Assigns(given, tensor, assign=lambda module, *values: None)
    del given, tensor
    assert [ref() for ref in alive] == [None, None, None]
    assert [*module.meta_parameters()] == []


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: [net],
        lambda net: {net},
        lambda net: types.SimpleNamespace(net=net),
        lambda net: types.SimpleNamespace(nets={"a": net}),
    ],
)
def test_a_module_in_something_given_is_given(wrap):
    net = nn.Linear(1, 1)
    module = Assigns(wrap(net), assign=lambda module, value: setattr(module, "a", net))
    assert names(module.named_meta_parameters()) == ["a.weight", "a.bias"]
    assert [*module.parameters()] == []


def test_a_module_given_and_assigned_later_is_meta():
    net = nn.Linear(1, 1)
    module = Assigns(net, assign=lambda module, value: None)
    module.a = net
    assert [*module.meta_modules()] == [net]


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


def steps(module):
    optdiff.MetaSGD(module, lr=0.1).step(module(torch.ones(4, 3)).square().mean())


@pytest.mark.parametrize("before", [lambda module: None, steps], ids=["plain", "after a step"])
@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda module: copy.deepcopy([module])[0],
        lambda module: copy.deepcopy(copy.deepcopy(module)),
        lambda module: copy.deepcopy(Outer(module)).inner,
        lambda module: copy.deepcopy(copy.copy(module)),
    ],
    ids=["deepcopy", "in a list", "twice", "as a meta-module", "shallow first"],
)
def test_a_copy_with_a_computed_meta_parameter(before, duplicate):
    module = inner()
    module.decay = module.decay * 2
    module.meta_net.register_buffer("scale", module.decay + 1)
    before(module)
    twin = duplicate(module)
    assert (twin.decay.is_leaf, twin.decay.requires_grad, twin.decay.item()) == (True, True, 2)
    assert names(twin.named_meta_parameters()) == names(module.named_meta_parameters())
    assert twin.meta_net is not module.meta_net
    assert (twin(torch.ones(1, 3)) == module(torch.ones(1, 3))).all()


def test_a_clone_by_reference_has_the_same_meta_parameters():
    module = inner()
    twin = optdiff.module_clone(module, by="reference")
    outer = optdiff.module_clone(module, by="copy")(torch.ones(1, 3)).sum() + twin.decay
    assert twin.decay is module.decay
    assert twin.meta_net.weight is module.meta_net.weight
    found = torch.autograd.grad(outer, [*module.meta_parameters()])
    assert all(grad.abs().max() > 0 for grad in found)


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


def appended(module, value):
    module.layers = nn.ModuleList()
    module.layers.append(value)


def keyed(module, value):
    module.layers = nn.ModuleDict()
    module.layers["a"] = value


def listed(module, value):
    module.layers = nn.ParameterList()
    module.layers.append(value)


def tied(module, value):
    module.layers = nn.ModuleList([nn.Linear(1, 1)])
    module.layers[0].weight = value.weight


class Layers(MetaGradientModule, nn.Sequential):
    pass


NOT_ITS_OWN = "Assigns: expected parameters and modules of its own, got "
BY_REGISTERING = "call register_meta_parameter or register_meta_module for it, or copy it"
REFUSED = [
    (
        [Outer(inner())],
        lambda module, value: setattr(module, "a", nn.Sequential(value.inner.meta_net)),
        ValueError,
        "Assigns.assignment: expected a module of its own, got Sequential with parts given to the ",
    ),
    (
        [nn.Linear(1, 1)],
        appended,
        ValueError,
        f"{NOT_ITS_OWN}Linear that was given to the constructor, at 'layers.0'; {BY_REGISTERING}",
    ),
    ([nn.Identity()], keyed, ValueError, f"{NOT_ITS_OWN}Identity that was given to the construct"),
    (
        [nn.Parameter(torch.ones(2))],
        listed,
        ValueError,
        f"{NOT_ITS_OWN}f32[2] that was given to the constructor, at 'layers.0'; {BY_REGISTERING}",
    ),
    (
        [nn.Linear(1, 1)],
        tied,
        ValueError,
        f"{NOT_ITS_OWN}f32[1, 1] that was given to the c",
    ),
    (
        [nn.Linear(1, 1)],
        lambda module, value: setattr(module, "a", {value}),
        ValueError,
        "Assigns.assignment: expected meta-parameters and meta-modules as attributes of their own, "
        "got some in a set, at 'a'; call register_meta_parameter or register_meta_module for each",
    ),
    (
        [leaf()],
        lambda module, value: module.register_buffer("a", value),
        ValueError,
        "Assigns.register_buffer: expected data, got f32[3] that requires grad and was given to "
        "the constructor, at 'a'; call register_meta_parameter, or detach it",
    ),
    (
        [],
        lambda module: module.register_meta_parameter("a", torch.ones(3, dtype=torch.int64)),
        TypeError,
        "Assigns.register_meta_parameter: expected a floating tensor for a meta-parameter, got "
        "i64[3], at 'a'; call register_buffer for data",
    ),
    (
        [],
        lambda module: MetaGradientModule.__init__(module, 3, a=4),
        TypeError,
        "Assigns: expected no arguments, got 2; write def __init__(self, ...) that assigns them",
    ),
    (
        [nn.Linear(1, 1)],
        lambda module, value: Layers(value),
        ValueError,
        "Layers.add_module: expected a module of its own, got Linear with parts given to the const",
    ),
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
        "Assigns.register_meta_parameter: expected a floating tensor for a meta-parameter, got int",
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
        (lambda m: setattr(m, "decay", 3), TypeError, "expected a floating tensor for a meta-pa"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: m.to(torch.float32, meta=True),
            "Inner.to: expected meta-parameters without a graph, got f64[] with one, at 'decay'; "
            "move what it was computed from",
        ),
        (
            lambda m: m.load_state_dict(inner().state_dict(meta=True), meta=True),
            "Inner.load_state_dict: expected meta-parameters without a graph, got f64[] with one, "
            "at 'decay'; load into what it was computed from",
        ),
    ],
)
def test_a_computed_meta_parameter_cannot_change_in_place(change, message):
    module = inner()
    module.decay = module.decay * 2
    before = module.head.weight.clone()
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        change(module)
    assert module.head.weight.dtype is torch.float64
    assert (module.head.weight == before).all()


@pytest.mark.parametrize(
    "args", [{"device": "meta"}, {"device": "meta", "memory_format": torch.channels_last}]
)
def test_a_device_without_numbers_is_refused(args):
    module = inner()
    message = "Inner.to: expected a device where f64[] can move in place, got meta, at 'decay'; "
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        module.to(**args, meta=True)
    every = (*module.parameters(), *module.meta_parameters())
    assert {param.device.type for param in every} == {"cpu"}
