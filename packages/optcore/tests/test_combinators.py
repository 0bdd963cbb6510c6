# SPDX-License-Identifier: Apache-2.0
"""What combinators do together; what each owes alone is in test_conformance."""

import pytest
import torch

import optcore


def test_extra_arguments_reach_the_inner_transformation():
    def init(params):
        return ()

    def update(updates, state, params, *, inplace, **extra):
        return optcore.map_tensors(lambda u: u * extra["factor"], updates), state

    asks = optcore.GradientTransformation(init, update)
    nested = optcore.named_chain(
        ("masked", optcore.masked(asks, True)),
        ("partition", optcore.partition({0: asks}, 0)),
        ("multi", optcore.multi_steps(asks, 1)),
        ("finite", optcore.apply_if_finite(asks, 0)),
        ("transform", optcore.conditionally_transform(asks, lambda step: True)),
        ("mask", optcore.conditionally_mask(asks, lambda step: True)),
        ("lookahead", optcore.lookahead(asks, 2, 0.5)),
        ("flatten", optcore.flatten(asks)),
        ("inject", optcore.inject_hyperparams(lambda: asks)()),
    )
    params = [torch.ones(2)]
    updates, _ = nested.update(params, nested.init(params), params, factor=2.0)
    assert torch.equal(updates[0], torch.full((2,), 2.0**9))


def test_a_wrong_shape_in_one_group_leaves_the_state_of_another():
    tx = optcore.partition(
        {"a": optcore.sgd(0.1, momentum=0.9), "b": optcore.adam()}, {"x": "a", "y": "b"}
    )
    params = {"x": torch.ones(2), "y": torch.ones(3)}
    state = tx.init(params)
    with pytest.raises(ValueError, match=r"partition: expected a gradient like .* at \['y'\]"):
        tx.update({"x": torch.ones(2), "y": torch.ones(2)}, state, params)
    assert not state.inner_states["a"].inner_state[0].trace["x"].any()
