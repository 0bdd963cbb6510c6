# SPDX-License-Identifier: Apache-2.0
"""Kernels touch the elements they are given and nothing beside; the sanitizers run this too."""

import pytest
import torch

import optcore
from treeops import tree_map

SIZES = [0, 1, 2, 3, 1023, 1024, 1025, 1026, 1027, 8191, 8193]
MARGIN = 7  # elements on either side: data begins off every boundary of a vector
DTYPES = ["float32", "float64", "bfloat16", "float16"]
RULES = {
    "descent": lambda **how: optcore.sgd(0.1, weight_decay=0.01, maximize=True, **how),
    "momentum": lambda **how: optcore.sgd(
        0.1, momentum=0.9, weight_decay=0.01, maximize=True, **how
    ),
    "nesterov": lambda **how: optcore.sgd(0.1, momentum=0.9, nesterov=True, **how),
    "adam": lambda **how: optcore.adam(0.1, eps=1e-3, eps_root=1e-3, **how),
    "adamw": lambda **how: optcore.adamw(0.1, eps=1e-3, eps_root=1e-3, **how),
    "amsgrad": lambda **how: optcore.amsgrad(0.1, eps=1e-3, eps_root=1e-3, **how),
    "rmsprop": lambda **how: optcore.rmsprop(0.1, eps=1e-2, **how),
    "rmsprop-centered": lambda **how: optcore.rmsprop(0.1, eps=1e-2, centered=True, **how),
    "rmsprop-momentum": lambda **how: optcore.rmsprop(0.1, eps=1e-2, momentum=0.9, **how),
    "rmsprop-both": lambda **how: optcore.rmsprop(
        0.1, eps=1e-2, momentum=0.9, centered=True, **how
    ),
    "adagrad": lambda **how: optcore.adagrad(0.1, lr_decay=0.1, eps=1e-2, **how),
    "lion": lambda **how: optcore.lion(0.1, weight_decay=0.01, **how),
}


class Arenas:
    """Tensors that stand between margins of one known value."""

    def __init__(self):
        self.all = []

    def place(self, tensor):
        if not tensor.is_floating_point():
            return tensor
        arena = tensor.new_full((tensor.numel() + 2 * MARGIN,), -77.0)
        inside = arena[MARGIN : MARGIN + tensor.numel()]
        inside.copy_(tensor.reshape(-1))
        self.all.append(arena)
        return inside

    def untouched(self):
        return all(
            (arena[:MARGIN] == -77).all() and (arena[-MARGIN:] == -77).all() for arena in self.all
        )


@pytest.fixture(params=RULES, ids=str)
def optimizer(request):
    return RULES[request.param](use_accelerated_op=True)


def leaves(dtype, device):
    made = [torch.randn(size) for size in SIZES]
    return [tensor.to(device, getattr(torch, dtype)) for tensor in made]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_in_place_writes_no_neighbour(optimizer, dtype, device):
    arenas = Arenas()
    params = [arenas.place(p) for p in leaves(dtype, device)]
    grads = [arenas.place(g) for g in leaves(dtype, device)]
    before = [p.clone() for p in params]
    state = tree_map(arenas.place, optimizer.init(params))
    for _ in range(2):
        params, state = optimizer.step(grads, state, params, inplace=True)
    assert arenas.untouched()
    assert all(not torch.equal(p, old) for p, old in zip(params[1:], before[1:], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_updates_in_place_write_no_neighbour(optimizer, dtype, device):
    arenas = Arenas()
    params = [arenas.place(p) for p in leaves(dtype, device)]
    grads = [arenas.place(g) for g in leaves(dtype, device)]
    state = tree_map(arenas.place, optimizer.init(params))
    updates, state = optimizer.update(grads, state, params, inplace=True)
    assert arenas.untouched()
    assert [u.shape for u in updates] == [p.shape for p in params]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_differentiable_step_and_its_backward_read_no_neighbour(optimizer, dtype, device):
    arenas = Arenas()
    params = [arenas.place(p).requires_grad_() for p in leaves(dtype, device)]
    grads = [arenas.place(g).requires_grad_() for g in leaves(dtype, device)]
    state = optimizer.init(params)
    new, state = optimizer.step(grads, state, params, inplace=False)
    new, state = optimizer.step(grads, state, new, inplace=False)
    found = torch.autograd.grad([p.sum() for p in new], [*params, *grads])
    assert arenas.untouched()
    assert all(f.isfinite().all() for f in found)
