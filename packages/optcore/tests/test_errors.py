# SPDX-License-Identifier: Apache-2.0
"""Bad input gets one clear error and changes nothing."""

import copy
import inspect
import re

import pytest
import torch

import optcore

NAN = float("nan")
CONSTRUCTION = [
    (lambda: optcore.adam(lr=-1.0), ValueError, "adam: expected lr >= 0, got -1.0"),
    (lambda: optcore.adamw(lr=NAN), ValueError, "adamw: expected lr >= 0, got nan"),
    (lambda: optcore.sgd(lr="0.1"), TypeError, "sgd: expected lr as a number, schedule, tensor"),
    (lambda: optcore.sgd(lr=True), TypeError, "sgd: expected lr as a number, schedule, tensor"),
    (lambda: optcore.sgd(lr={}), TypeError, "sgd: expected lr as a number, got an empty dict"),
    (lambda: optcore.sgd(momentum=-0.1), ValueError, "sgd: expected momentum >= 0, got -0.1"),
    (
        lambda: optcore.adam(betas=(0.9, 1.0)),
        ValueError,
        "adam: expected betas[1] in [0, 1), got 1.0",
    ),
    (
        lambda: optcore.adam(betas=(-0.1, 0.9)),
        ValueError,
        "adam: expected betas[0] in [0, 1), got -0.1",
    ),
    (lambda: optcore.adam(betas=0.9), TypeError, "adam: expected betas as a pair, got float"),
    (
        lambda: optcore.adamw(betas=(0.9, 0.9, 0.9)),
        TypeError,
        "adamw: expected betas as a pair, got tuple of 3",
    ),
    (lambda: optcore.adam(eps=-1e-8), ValueError, "adam: expected eps >= 0, got -1e-08"),
    (lambda: optcore.adam(weight_decay=-1), ValueError, "adam: expected weight_decay >= 0, got -1"),
    (
        lambda: optcore.adam(lr={"w": 0.1, "b": -2.0}),
        ValueError,
        "adam: expected lr >= 0, got -2.0",
    ),
    (
        lambda: optcore.sgd(lr=torch.tensor(1)),
        TypeError,
        "sgd: expected lr as a floating tensor, got i64[]",
    ),
    (
        lambda: optcore.sgd(nesterov=True),
        ValueError,
        "sgd: expected a momentum and no dampening with nesterov=True, got momentum=0.0",
    ),
    (
        lambda: optcore.chain(optcore.identity(), 3),
        TypeError,
        "chain: expected a GradientTransformation, got int, at argument 2",
    ),
    (
        lambda: optcore.scale_by_schedule(0.1),
        TypeError,
        "scale_by_schedule: expected a function count -> factor, got float; use scale",
    ),
    (
        lambda: optcore.add_decayed_weights(0.1, mask={"w": 1}),
        TypeError,
        "add_decayed_weights: expected a mask of bools, got a int leaf",
    ),
    (
        lambda: optcore.GradientTransformation(None, None),
        TypeError,
        "GradientTransformation: expected a callable init, got NoneType",
    ),
    (
        lambda: optcore.FuncOptimizer("adam"),
        TypeError,
        "FuncOptimizer: expected a GradientTransformation, got str; e.g. optcore.adam()",
    ),
    (
        lambda: optcore.Optimizer([torch.ones(1)], "adam"),
        TypeError,
        "Optimizer: expected a GradientTransformation, got str",
    ),
    (
        lambda: optcore.Adam([torch.ones(1)], lr=-1.0),
        ValueError,
        "adam: expected lr >= 0, got -1.0",
    ),
    (
        lambda: optcore.Adam([{"params": [torch.ones(1)], "eps": -1.0}]),
        ValueError,
        "adam: expected eps >= 0, got -1.0",
    ),
    (
        lambda: optcore.muon().init([torch.ones(3, dtype=torch.float32)]),
        ValueError,
        "scale_by_muon: expected matrices, got f32[3]; give parameters of other shapes another",
    ),
    (
        lambda: optcore.adan(betas=(0.9, 0.9)),
        TypeError,
        "adan: expected betas as a triple, got tuple",
    ),
    (
        lambda: optcore.lars(weight_decay=0.1, weight_decay_mask=3),
        TypeError,
        "lars: expected weight_decay_mask of bools, got a int leaf, at ",
    ),
    (
        lambda: optcore.lars(trust_ratio_mask=[True, 3]),
        TypeError,
        "lars: expected trust_ratio_mask of bools, got a int leaf, at ",
    ),
    (
        lambda: optcore.sophia(hessian_diagonal_fn=3),
        TypeError,
        "sophia: expected hessian_diagonal_fn as a GradientTransformation, got int",
    ),
    (lambda: optcore.adam(maximize="yes"), TypeError, "adam: expected maximize as a bool, got str"),
    (
        lambda: optcore.fromage(maximize=1),
        TypeError,
        "fromage: expected maximize as a bool, got int",
    ),
    (
        lambda: optcore.sgd(momentum=0.9, nesterov="no"),
        TypeError,
        "sgd: expected nesterov as a bool, got str",
    ),
    (
        lambda: optcore.muon(nesterov="no"),
        TypeError,
        "muon: expected nesterov as a bool, got str",
    ),
    (
        lambda: optcore.rprop(etas=0.5),
        TypeError,
        "rprop: expected etas as a pair, got float",
    ),
    (
        lambda: optcore.rprop(etas=(0.5, 1.2, 3)),
        TypeError,
        "rprop: expected etas as a pair, got tuple of 3",
    ),
    (
        lambda: optcore.rprop(etas=(0.5, float("inf"))),
        ValueError,
        "rprop: expected etas[1] >= 1, got inf",
    ),
    (
        lambda: optcore.rprop(step_sizes=1.0),
        TypeError,
        "rprop: expected step_sizes as a pair, got float",
    ),
    (
        lambda: optcore.rprop(step_sizes=(2.0, 1.0)),
        ValueError,
        "rprop: expected step_sizes with 0 <= low <= high, got (2.0, 1.0)",
    ),
    (
        lambda: optcore.rprop(lr=optcore.constant_schedule(0.1)),
        TypeError,
        "rprop: expected lr as a number, tensor or tree of such, got a schedule; it is "
        "the size of the first steps only",
    ),
    (
        lambda: optcore.adafactor(eps=1e-3),
        TypeError,
        "adafactor: expected eps as a pair, got float",
    ),
    (
        lambda: optcore.yogi(initial_accumulator_value=torch.tensor(0.1)),
        TypeError,
        "yogi: expected initial_accumulator_value as a number, got f64[]",
    ),
    (
        lambda: optcore.adagrad(initial_accumulator_value={"w": 0.1}),
        TypeError,
        "adagrad: expected initial_accumulator_value as a number, got dict",
    ),
    (
        lambda: optcore.rmsprop(initial_scale=lambda count: 0.1),
        TypeError,
        "rmsprop: expected initial_scale as a number, got function",
    ),
    (
        lambda: optcore.muon(eps=torch.tensor(0.1)),
        TypeError,
        "muon: expected eps as a number, got f64[]",
    ),
    (
        lambda: optcore.muon(ns_coefficients=(1.5, torch.tensor(-0.5), 0.0)),
        TypeError,
        "muon: expected ns_coefficients[1] as a number, got f64[]",
    ),
    (
        lambda: optcore.muon(ns_coefficients=1.5),
        TypeError,
        "muon: expected 3 ns_coefficients, got float",
    ),
    (
        lambda: optcore.rprop(etas=(1.5, 1.2)),
        ValueError,
        "rprop: expected etas with 0 < etas[0] < 1 < etas[1], got (1.5, 1.2)",
    ),
    (
        lambda: optcore.adam().init([torch.ones(1, dtype=torch.int64)]),
        TypeError,
        "scale_by_adam: expected real floating parameters, got i64[1]",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), CONSTRUCTION)
def test_construction(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def two():
    return {"a": torch.ones(2), "b": torch.ones(3)}


UPDATES = [
    ("missing key", {"a": torch.ones(2)}, ValueError, "scale_by_adam: state differs from updates"),
    ("list", [torch.ones(2), torch.ones(3)], ValueError, "scale_by_adam: state differs"),
    ("string", {"a": torch.ones(2), "b": "x"}, TypeError, "expected a tree of tensors and None"),
    (
        "sparse",
        {"a": torch.ones(2), "b": torch.ones(3).to_sparse()},
        TypeError,
        "expected dense gradients, got torch.sparse_coo; call .to_dense()",
    ),
    (
        "complex",
        {"a": torch.ones(2), "b": torch.ones(3) * 1j},
        TypeError,
        "expected real floating gradients, got c64[3]",
    ),
]


@pytest.mark.parametrize(("grads", "error", "message"), [c[1:] for c in UPDATES])
def test_update_refuses_before_it_changes_the_state(grads, error, message):
    tx = optcore.adam(lr=0.1)
    state = tx.init(two())
    before = copy.deepcopy(state)
    with pytest.raises(error, match=re.escape(message)):
        tx.update(grads, state, inplace=True)
    assert torch.equal(state[0].mu["a"], before[0].mu["a"])
    assert torch.equal(state[0].mu["b"], before[0].mu["b"])


SHAPES = {
    "momentum": (optcore.sgd(lr=0.1, momentum=0.9), {"b": torch.ones(1)}, "trace"),
    "decay": (optcore.sgd(lr=0.1, weight_decay=0.1), {"b": torch.ones(1)}, "add_decayed_weights"),
    "adam": (optcore.adam(lr=0.1), {"b": torch.ones(())}, "scale_by_adam"),
    "longer": (optcore.adam(lr=0.1), {"b": torch.ones(4)}, "scale_by_adam"),
    "novograd": (optcore.novograd(lr=0.1), {"b": torch.ones(4)}, "scale_by_novograd"),
}


@pytest.mark.parametrize(("tx", "wrong", "who"), SHAPES.values(), ids=SHAPES.keys())
def test_a_gradient_of_another_shape_is_refused_before_anything_changes(tx, wrong, who):
    params = two()
    state = tx.init(params)
    before = copy.deepcopy(state)
    message = rf"{who}: expected a gradient like its parameter f..\[3\], got f.*, at \['b'\]"
    with pytest.raises(ValueError, match=message):
        tx.update({"a": torch.ones(2), **wrong}, state, params, inplace=True)
    torch.testing.assert_close(state, before)


def test_a_hyperparameter_that_does_not_broadcast():
    message = r"scale_by_learning_rate: expected a hyperparameter that broadcasts to f..\[2\], got "
    with pytest.raises(ValueError, match=message):
        optcore.sgd(lr=torch.ones(3) * 0.1).init([torch.ones(2)])


def test_a_class_checks_hyperparameters_of_every_group_before_any_step():
    a, b = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = optcore.Adam([{"params": [a]}, {"params": [b]}], lr=0.0)
    a.grad, b.grad = torch.ones(2), torch.ones(3)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.param_groups[1]["lr"] = torch.ones(2) * 0.1
    with pytest.raises(ValueError, match="expected a hyperparameter that broadcasts to"):
        optimizer.step()
    assert torch.equal(a.detach(), torch.ones(2))


def test_unknown_keywords_name_the_class_and_what_it_takes():
    message = r"Adam: expected arguments \(params, lr, .*\), but got an unexpected .* 'amsgrad'"
    with pytest.raises(TypeError, match=message):
        optcore.Adam([torch.ones(1)], amsgrad=True)


def test_a_complex_loss_is_refused():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match="expected a real floating loss, got c"):
        optcore.FuncOptimizer(optcore.adam()).step((w * 1j).sum(), {"w": w})


def test_state_of_another_transformation():
    params = two()
    with pytest.raises(ValueError, match="chain: expected a state tuple of 2, got tuple of 1"):
        optcore.adam().update(params, optcore.sgd().init(params))


def test_weight_decay_needs_params():
    params = two()
    tx = optcore.adamw()
    state = tx.init(params)
    with pytest.raises(ValueError, match="adamw: expected params, got None; call update"):
        tx.update(params, state)
    assert not state[0].mu["a"].any()


def test_params_must_be_like_the_gradients():
    params = two()
    tx = optcore.adamw()
    state = tx.init(params)
    with pytest.raises(ValueError, match="adamw: params differ from updates: "):
        tx.update(params, state, {"a": params["a"]})
    assert not state[0].mu["a"].any()


def test_a_mask_must_be_a_prefix():
    with pytest.raises(ValueError, match="add_decayed_weights: mask is not a prefix of"):
        optcore.adamw(mask={"a": True, "c": False}).init(two())


def test_a_hyperparameter_tree_must_be_a_prefix():
    params = two()
    tx = optcore.sgd(lr={"a": 0.1, "c": 0.1})
    with pytest.raises(ValueError, match="scale_by_learning_rate: lr is not a prefix of"):
        tx.init(params)


APPLY = [
    ({"a": torch.ones(2)}, "apply_updates: updates differ from params"),
    (
        {"a": torch.ones(2), "b": torch.ones(1)},
        "apply_updates: expected an update like its parameter f64[3], got f32[1], at leaf ['b']",
    ),
]


def test_apply_updates_wants_tensors():
    with pytest.raises(TypeError, match=r"apply_updates: expected tensors, got a parameter float"):
        optcore.apply_updates({"a": 1.0}, {"a": torch.ones(())})


@pytest.mark.parametrize(("updates", "message"), APPLY)
@pytest.mark.parametrize("inplace", [True, False, None])
def test_apply_updates_refuses_before_it_changes_a_parameter(updates, message, inplace):
    params = two()
    with pytest.raises(ValueError, match=re.escape(message)):
        optcore.apply_updates(params, updates, inplace=inplace)
    assert torch.equal(params["a"], torch.ones(2))


LOSSES = [
    (lambda w: w * 2, ValueError, "FuncOptimizer.step: expected a scalar loss, got f64[2]"),
    (lambda w: 3.0, TypeError, "FuncOptimizer.step: expected a scalar loss tensor, got float"),
    (lambda w: w.detach().sum(), ValueError, "FuncOptimizer.step: expected a loss that depends"),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES)
def test_func_optimizer_refuses_a_bad_loss(loss, error, message):
    optimizer = optcore.FuncOptimizer(optcore.adam())
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(error, match=re.escape(message)):
        optimizer.step(loss(w), {"w": w})
    assert optimizer.state is None


def test_func_optimizer_needs_parameters_that_require_grad():
    optimizer = optcore.FuncOptimizer(optcore.adam())
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="expected parameters that require grad, got none; call"):
        optimizer.step(w.sum(), {"w": torch.ones(2)})


def test_class_step_is_all_or_nothing():
    good, bad = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = optcore.Adam([{"params": [good]}, {"params": [bad]}], lr=0.1)
    good.grad = torch.ones(2)
    bad.grad = torch.ones(2).to_sparse()
    with pytest.raises(TypeError, match=r"Adam: expected dense gradients, got torch.sparse_coo"):
        optimizer.step()
    assert torch.equal(good.detach(), torch.ones(2))
    assert not optimizer.state


def test_bad_group_leaves_the_optimizer_alone():
    optimizer = optcore.Adam([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="adam: expected lr >= 0, got -1"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": -1})
    assert len(optimizer.param_groups) == 1


def test_a_state_without_a_buffer_is_refused_by_name():
    w = torch.nn.Parameter(torch.ones(2))
    optimizer = optcore.Adam([w])
    w.grad = torch.ones(2)
    optimizer.step()
    del optimizer.state[w]["exp_avg"]
    with pytest.raises(ValueError, match="Adam: expected 'exp_avg' in the state of parameter 0"):
        optimizer.step()


ROWS = {**optcore.OPTIMIZERS, **optcore.INFORMED_OPTIMIZERS}
FLAGS = [
    (name, parameter.name)
    for name, row in ROWS.items()
    for parameter in inspect.signature(row.factory).parameters.values()
    if isinstance(parameter.default, bool)
]


@pytest.mark.parametrize("value", ["no", 1, torch.ones(2)], ids=["str", "int", "tensor"])
@pytest.mark.parametrize(("name", "flag"), FLAGS)
def test_every_flag_of_every_optimizer_is_a_bool(name, flag, value):
    with pytest.raises(TypeError, match=f"^{name}: expected {flag} as a bool, got "):
        ROWS[name].factory(**{flag: value})
