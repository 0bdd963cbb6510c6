# SPDX-License-Identifier: Apache-2.0
"""The checks of ``optcore.testing`` find what they are for, and say who, what and where."""

import re

import pytest
import torch

import optcore
from optcore import testing


def no_state(params):
    return optcore.EmptyState()


def transformation(update, init=no_state, **fields):
    return testing.Case(
        "broken",
        lambda: optcore.GradientTransformation(init, update, **fields),
        differentiable=True,
    )


def mapped(fn):
    def update(updates, state, params, *, inplace):
        return optcore.map_tensors(fn, updates), state

    return transformation(update)


def forgets_none(updates, state, params, *, inplace):
    return {k: torch.zeros(1) if g is None else g for k, g in updates.items()}, state


def writes_when_it_may_not(updates, state, params, *, inplace):
    return {k: state[k].add_(g) for k, g in updates.items()}, state


def differs_in_place(updates, state, params, *, inplace):
    return optcore.map_tensors(lambda g: g * (2 if inplace else 3), updates), state


def counts_in_python(updates, state, params, *, inplace):
    return updates, state + 1


def needs_more_than_it_says(updates, state, params, *, inplace):
    if params is None:
        raise ValueError("no params")
    return updates, state


def moves_what_has_no_gradient(updates, state, params, *, inplace):
    return updates, {k: s + 1 for k, s in state.items()}


def zeroes_the_gradients_it_kept(updates, state, params, *, inplace):
    if inplace:
        optcore.map_tensors(torch.Tensor.zero_, state)
    return optcore.map_tensors(torch.clone, updates), updates


def keeps_the_parameters(updates, state, params, *, inplace):
    return {k: g + (params[k] - state[k]) for k, g in updates.items()}, dict(params)


def asks_for_values(updates, state, params, *, inplace):
    return {k: g * (g.sum().item() > 0) for k, g in updates.items()}, state


def wants_a_dict(updates, state, params, *, inplace):
    return dict(updates.items()), state


def adds_parameters(updates, state, params, *, inplace):
    return {k: g + params[k] for k, g in updates.items()}, state


def drops_a_key(updates, state, params, *, inplace):
    return {"w": updates["w"]}, state


def takes_gradients_out(updates, state, params, *, inplace):
    return {"w": updates.pop("w"), "b": updates.pop("b")}, state


def loses_what_has_no_gradient(updates, state, params, *, inplace):
    return updates, {k: None if g is None else g for k, g in updates.items()}


def zeros(params):
    return optcore.map_tensors(torch.zeros_like, params)


class NotThreeTimes(torch.autograd.Function):
    """Three times its argument, with another derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 3 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad

    @staticmethod
    def jvp(ctx, tangent):
        return 3 * tangent


def remembers():
    seen = []

    def update(updates, state, params, *, inplace):
        seen.append(1)
        return optcore.map_tensors(lambda g: g * len(seen), updates), state

    return transformation(update)


HOLDS_A_LAMBDA = optcore.stateless(lambda updates, params: updates)


def negated_formula(param, grad, steps):
    return param - grad(param, 0)


def bent_rates(rates):
    """The second rate has a wrong derivative."""
    return optcore.scale(NotThreeTimes.apply(rates[1]) * rates[0])


def two_rates(lr):
    """Treats a tensor differently from a number."""
    return optcore.scale(lr if isinstance(lr, float) else 2 * lr)


BROKEN = [
    (
        testing.check_structure,
        mapped(lambda g: g.sum()),
        "expected f64[2], got f64[], at ['b']",
    ),
    (
        testing.check_structure,
        transformation(counts_in_python, lambda params: 0),
        "expected states of tensors, got int, at the root",
    ),
    (
        testing.check_structure,
        transformation(needs_more_than_it_says),
        "expected needs_params=True, got an error without params",
    ),
    (
        testing.check_structure,
        transformation(drops_a_key),
        "expected updates of the gradients' structure, got another",
    ),
    (
        testing.check_structure,
        mapped(lambda g: 1.0),
        "expected f64[2], got float, at ['b']",
    ),
    (
        testing.check_structure,
        transformation(adds_parameters),
        "expected needs_params=True, got an error without params",
    ),
    (
        testing.check_structure,
        testing.Case("broken", lambda: (no_state, forgets_none)),
        "expected a GradientTransformation, got tuple",
    ),
    (
        testing.check_purity,
        mapped(lambda g: g.mul_(2)),
        "expected gradients untouched with inplace=True, got a change, at ['b']",
    ),
    (
        testing.check_purity,
        transformation(writes_when_it_may_not, zeros),
        "expected earlier updates untouched with inplace=True, got a change, at ['b']",
    ),
    (
        testing.check_purity,
        transformation(zeroes_the_gradients_it_kept, zeros),
        "expected earlier gradients untouched with inplace=True, got a change, at ['b']",
    ),
    (
        testing.check_purity,
        remembers(),
        "expected updates after a new init and of a new transformation to be equal, got a diff",
    ),
    (
        testing.check_inplace_equals_pure,
        transformation(differs_in_place),
        "expected inplace=True and inplace=False to be equal, got a difference of ",
    ),
    (
        testing.check_inplace_equals_pure,
        transformation(keeps_the_parameters, dict, needs_params=True),
        "expected inplace=True (parameters too) and inplace=False to be equal, got a difference",
    ),
    (
        testing.check_none_leaves,
        transformation(forgets_none),
        "expected None where the gradient is None, got an update, at ['b']",
    ),
    (
        testing.check_none_leaves,
        transformation(moves_what_has_no_gradient, zeros),
        "expected the state of a leaf without gradient kept, got a change",
    ),
    (
        testing.check_none_leaves,
        transformation(loses_what_has_no_gradient, zeros),
        "expected the state of a leaf without gradient kept, got a change",
    ),
    (
        testing.check_purity,
        transformation(takes_gradients_out),
        "expected gradients untouched with inplace=True, got a change, at the root",
    ),
    (
        testing.check_pickle,
        testing.Case("broken", lambda: optcore.stateless(lambda updates, params: updates)),
        "expected a second construction to compare, hash and print equal, got a difference",
    ),
    (
        testing.check_hyperparameters,
        testing.Case("broken", two_rates, {"lr": 0.5}),
        "expected each hyperparameter as tensor and number to be equal, got a difference of",
    ),
    (
        testing.check_reference,
        testing.Case("broken", optcore.identity, reference=negated_formula),
        "expected 10 steps and the formula to be equal, got a difference of",
    ),
    (
        testing.check_dtypes,
        mapped(lambda g: g.double()),
        "expected updates in torch.float32, got f64[], at [0]['b']",
    ),
    (
        testing.check_edge_trees,
        mapped(lambda g: g / g.numel() if g.numel() else g.new_zeros(1)),
        "expected a finite update like f64[0] in a list, got f64[1], at [1]",
    ),
    (
        testing.check_gradients,
        mapped(NotThreeTimes.apply),
        "expected the first derivative of 3 steps to equal finite differences, got what stands "
        "above, at params['w']",
    ),
    (
        testing.check_gradients,
        mapped(lambda g: g.detach().square() * g.abs().sqrt().detach() + 0 * g),
        "expected the first derivative of 3 steps to equal finite differences, got what stands",
    ),
    (
        testing.check_gradients,
        testing.Case("broken", bent_rates, {"rates": (0.5, 0.25)}),
        "expected the first derivative of 3 steps to equal finite differences, got what stands "
        "above, at rates[1]",
    ),
    (
        testing.check_zero_gradient,
        mapped(lambda g: g / (g.square().sqrt() + 1e-3)),
        "expected a finite first derivative, got NaN or infinity, at argument [0]",
    ),
    (
        testing.check_zero_gradient,
        mapped(lambda g: torch.where(g == 0, 0.0, 2 * g)),
        "expected the first derivative at 0 and at 1e-30 to be equal, got a difference of",
    ),
    (
        testing.check_jvp,
        mapped(NotThreeTimes.apply),
        "expected forward and reverse mode to be equal, got a difference of",
    ),
    (
        testing.check_edge_trees,
        transformation(adds_parameters, needs_params=True),
        "expected a sparse gradient refused by name, got RuntimeError: ",
    ),
    # errors of the transformation
    (
        testing.check_purity,
        testing.Case("broken", lambda: (no_state, forgets_none)),
        "expected no error, got AttributeError: 'tuple' object has no attribute 'init'",
    ),
    (
        testing.check_none_leaves,
        transformation(adds_parameters, needs_params=True),
        "expected no error, got TypeError: unsupported operand",
    ),
    (
        testing.check_edge_trees,
        transformation(wants_a_dict),
        "expected no error, got AttributeError: 'list' object has no attribute 'items'",
    ),
    (
        testing.check_vmap,
        transformation(asks_for_values),
        "expected no error, got RuntimeError: vmap: ",
    ),
    (
        testing.check_pickle,
        testing.Case("broken", lambda: HOLDS_A_LAMBDA),
        "expected no error, got ",
    ),
    (
        testing.check_reference,
        testing.Case("broken", optcore.identity, reference=lambda param: param),
        "expected no error, got TypeError: ",
    ),
]


@pytest.mark.parametrize(("check", "case", "message"), BROKEN)
def test_a_check_says_who_what_and_where(check, case, message):
    who = re.escape(f"broken: {check.__name__}: {message}")
    with pytest.raises(testing.ConformanceError, match=f"^{who}"):
        check(case)


def test_an_error_of_the_transformation_is_the_cause():
    case = transformation(adds_parameters, needs_params=True)
    with pytest.raises(testing.ConformanceError) as caught:
        testing.check_none_leaves(case)
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_case_names_its_values():
    case = testing.Case("c", optcore.adam, {"lr": {"w": 0.1}, "betas": (0.5, 0.6), "eps": 0.1})
    assert case.value_names() == ["lr['w']", "betas[0]", "betas[1]", "eps"]


def test_check_reference_asks_for_a_formula():
    with pytest.raises(TypeError, match="check_reference: expected a case with a reference, got"):
        testing.check_reference(testing.Case("mine", optcore.identity))


def test_a_case_builds_what_it_is_given():
    case = testing.Case("c", optcore.adam, {"lr": 0.1, "betas": (0.5, 0.6), "eps": 1e-3}, ("eps",))
    assert case.values() == [0.1, 0.5, 0.6]
    assert case.build() == optcore.adam(lr=0.1, betas=(0.5, 0.6), eps=1e-3)
    assert case.build([1.0, 0.2, 0.3]) == optcore.adam(lr=1.0, betas=(0.2, 0.3), eps=1e-3)
