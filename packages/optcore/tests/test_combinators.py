# SPDX-License-Identifier: Apache-2.0
"""What combinators do together; what each owes alone is in test_conformance."""

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
