# SPDX-License-Identifier: Apache-2.0
"""Masks and groups: who sees which leaves, what is kept for them, what is refused."""

import re

import pytest
import torch

import optcore
import treeops


def params():
    return {"enc": {"w": torch.ones(2, 2), "b": torch.ones(2)}, "head": [torch.ones(3)]}


def is_matrix(tree):
    return optcore.map_tensors(lambda p: p.ndim > 1, tree)


MASKS = {
    "tree": {"enc": {"w": True, "b": False}, "head": [False]},
    "function": is_matrix,
    "prefix": {"enc": {"w": True, "b": False}, "head": False},
}


@pytest.fixture(params=MASKS.values(), ids=MASKS.keys())
def mask(request):
    return request.param


def test_only_chosen_leaves_change(mask):
    tx = optcore.masked(optcore.scale(-2.0), mask)
    new, _ = tx.update(params(), tx.init(params()))
    assert torch.equal(new["enc"]["w"], torch.full((2, 2), -2.0))
    assert torch.equal(new["enc"]["b"], torch.ones(2))
    assert torch.equal(new["head"][0], torch.ones(3))


def test_the_state_has_no_buffers_for_hidden_leaves(mask):
    (state,) = optcore.masked(optcore.trace(0.9), mask).init(params())
    assert isinstance(state.trace["enc"]["w"], torch.Tensor)
    assert state.trace["enc"]["b"] == state.trace["head"][0] == optcore.MaskedNode()
    assert treeops.tree_leaves(optcore.MaskedNode(), none_is_leaf=True) == []


@pytest.mark.parametrize(("one", "expected"), [(True, 3.0), (False, 1.0)])
def test_one_bool_serves_all(one, expected):
    tx = optcore.masked(optcore.scale(3.0), one)
    new, _ = tx.update(params(), tx.init(params()))
    assert new["head"][0][0] == expected


def test_hyperparameter_trees_reach_below_a_hidden_subtree():
    lr = {"enc": {"w": 0.5, "b": 2.0}, "head": [4.0]}
    tx = optcore.masked(optcore.sgd(lr=lr), {"enc": False, "head": True})
    new, _ = tx.update(params(), tx.init(params()))
    assert new["head"][0][0] == -4.0
    assert new["enc"]["w"][0, 0] == 1.0


def test_a_missing_gradient_behind_a_mask_function():
    tx = optcore.masked(optcore.trace(0.9), is_matrix)
    tree = params()
    state = tx.init(tree)
    grads = {"enc": {"w": None, "b": torch.ones(2)}, "head": [None]}
    new, after = tx.update(grads, state, tree)
    assert new["enc"]["w"] is None
    assert new["head"] == [None]
    assert torch.equal(after[0].trace["enc"]["w"], torch.zeros(2, 2))
    with pytest.raises(ValueError, match="masked: expected params, got None, where mask is a func"):
        tx.update(grads, state)


def test_parameters_that_are_none_need_no_flag():
    tree = {"w": torch.ones(2, 2), "gone": None}
    tx = optcore.masked(optcore.trace(0.9), is_matrix)
    new, _ = tx.update(tree, tx.init(tree), tree)
    assert new["gone"] is None
    grouped = optcore.partition({True: optcore.scale(2.0)}, is_matrix)
    assert grouped.update(tree, grouped.init(tree), tree)[0]["w"][0, 0] == 2.0


def test_masks_nest():
    inner = optcore.masked(optcore.scale(2.0), {"enc": {"w": True, "b": False}, "head": True})
    tx = optcore.masked(inner, {"enc": True, "head": False})
    new, _ = tx.update(params(), tx.init(params()))
    assert (new["enc"]["w"][0, 0], new["enc"]["b"][0], new["head"][0][0]) == (2.0, 1.0, 1.0)


class Tagged(dict):
    """What a test transformation saw of an extra argument."""


def see(updates, state, params, *, inplace, **extra):
    seen = treeops.tree_leaves(extra["tags"])
    return optcore.map_tensors(lambda u: u * len(seen), updates), state


def nothing(params):
    return ()


@pytest.mark.parametrize(("compatible", "seen"), [(True, 1), (False, 2)])
def test_extra_arguments_like_the_updates_can_be_masked_too(compatible, seen):
    inner = optcore.GradientTransformation(nothing, see)
    for tx in (
        optcore.masked(inner, {"a": True, "b": False}, mask_compatible_extra_args=compatible),
        optcore.partition(
            {"x": inner, "y": optcore.identity()},
            {"a": "x", "b": "y"},
            mask_compatible_extra_args=compatible,
        ),
    ):
        tree = {"a": torch.ones(1), "b": torch.ones(1)}
        new, _ = tx.update(tree, tx.init(tree), tags={"a": 1, "b": 2}, other=3)
        assert (new["a"].item(), new["b"].item()) == (seen, 1)


def test_each_group_goes_its_own_way():
    tx = optcore.multi_transform(
        {"slow": optcore.scale(0.5), "fast": optcore.trace(0.9), "unused": optcore.adam()},
        {"enc": "slow", "head": "fast"},
    )
    state = tx.init(params())
    assert list(state.inner_states) == ["slow", "fast", "unused"]
    _, state = tx.update(params(), state)
    new, state = tx.update(params(), state)
    assert new["enc"]["w"][0, 0] == 0.5
    assert new["head"][0][0] == pytest.approx(1.9)
    assert state.inner_states["fast"].inner_state.trace["enc"]["w"] == optcore.MaskedNode()


@pytest.mark.parametrize(
    "freeze_mask", [is_matrix, {"enc": {"w": True, "b": False}, "head": False}]
)
def test_frozen_parameters_get_zeros_and_no_state(freeze_mask):
    tx = optcore.selective_transform(optcore.adam(lr=0.1), freeze_mask=freeze_mask)
    state = tx.init(params())
    assert state.inner_states["train"].inner_state[0].mu["enc"]["w"] == optcore.MaskedNode()
    bad = {**params(), "enc": {"w": torch.full((2, 2), torch.nan), "b": torch.ones(2)}}
    new, _ = tx.update(bad, state)
    assert torch.equal(new["enc"]["w"], torch.zeros(2, 2))
    assert new["enc"]["b"][0] == pytest.approx(-0.1)


@pytest.mark.parametrize("all_of_them", [True, False])
def test_freeze_by_one_bool(all_of_them):
    tx = optcore.freeze(all_of_them)
    new, _ = tx.update(params(), tx.init(params()))
    assert new["head"][0].any() != all_of_them


def test_weight_decay_behind_a_mask_still_needs_params():
    tx = optcore.masked(optcore.adamw(), True)
    with pytest.raises(ValueError, match="masked: expected params, got None; call update"):
        tx.update(params(), tx.init(params()))


def test_a_learned_rate_of_one_group_is_seen():
    lr = torch.tensor(0.1, requires_grad=True)
    tx = optcore.partition({"a": optcore.sgd(lr=lr), "b": optcore.sgd()}, "a")
    assert list(tx.tensors()) == [lr]
    new, _ = tx.update([torch.ones(2)], tx.init([torch.ones(2)]))
    assert torch.autograd.grad(new[0].sum(), lr)[0] == -2.0


ERRORS = [
    (
        lambda: optcore.masked("adam", True),
        TypeError,
        "masked: expected a GradientTransformation, got str",
    ),
    (
        lambda: optcore.masked(optcore.adam(), {"a": [1]}),
        TypeError,
        "masked: expected a mask of bools, got a int leaf, at ['a'][0]",
    ),
    (
        lambda: optcore.masked(optcore.adam(), {"enc": True, "tail": True}).init(params()),
        ValueError,
        "masked: mask is not a prefix of the parameters: ",
    ),
    (
        lambda: optcore.masked(optcore.adam(), lambda p: "all").init(params()),
        TypeError,
        "masked: expected a mask of bools, got a str leaf, at the root",
    ),
    (
        lambda: optcore.masked(optcore.adam(), {"enc": None, "head": True}).init(params()),
        TypeError,
        "masked: expected a bool in the mask, got None, at ['enc']['b']",
    ),
    (
        lambda: optcore.freeze("all"),
        TypeError,
        "freeze: expected a mask of bools, got a str leaf, at the root",
    ),
    (
        lambda: optcore.partition(optcore.adam(), "a"),
        TypeError,
        "partition: expected transforms as a mapping from labels, got GradientTransformation",
    ),
    (
        lambda: optcore.partition({"a": 0.1}, "a"),
        TypeError,
        "partition['a']: expected a GradientTransformation, got float",
    ),
    (
        lambda: optcore.partition(
            {"a": optcore.adam()}, {"enc": {"w": "a", "b": "c"}, "head": "a"}
        ).init(params()),
        ValueError,
        "partition: expected labels among ['a'], got 'c', at ['enc']['b']; add a transformation",
    ),
    (
        lambda: optcore.partition({"a": optcore.adam()}, {"enc": "a"}).init(params()),
        ValueError,
        "partition: param_labels is not a prefix of the parameters: ",
    ),
    (
        lambda: optcore.selective_transform(None, freeze_mask=True),
        TypeError,
        "selective_transform: expected a GradientTransformation, got NoneType",
    ),
    (
        lambda: optcore.selective_transform(optcore.adam(), freeze_mask={"a": "yes"}),
        TypeError,
        "selective_transform: expected a mask of bools, got a str leaf, at ['a']",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), ERRORS)
def test_errors(build, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        build()


def test_mismatched_prefix_names_the_path():
    with pytest.raises(ValueError, match=re.escape("['enc']")):
        optcore.masked(optcore.adam(), {"enc": [True, True], "head": True}).init(params())
