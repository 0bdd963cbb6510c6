# SPDX-License-Identifier: Apache-2.0
"""Noise that is a function of seed, count, leaf and element."""

import pickle
from functools import partial

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import optcore


def update(tx, grads, params=None, count=1):
    state = tx.init(grads if params is None else params)
    for _ in range(count):
        updates, state = tx.update(grads, state, params)
    return updates


def noise_of(seed, shape, count=1, index=0, **kwargs):
    grads = [torch.zeros(shape)] * (index + 1)
    return update(optcore.add_noise(1.0, 0.0, seed), grads, count=count, **kwargs)[index]


def test_noise_is_a_function_of_seed_count_leaf_and_element():
    def mix(word):
        word = (word ^ (word >> 16)) * 0x7FEB352D % 2**32
        word = (word ^ (word >> 15)) * 0x846CA68B % 2**32
        return word ^ (word >> 16)

    seed, count, leaf = 2**40 + 123, 2, 1  # third update, second leaf
    k = [mix(mix(mix(mix(i ^ 123) ^ 2**8) ^ count) ^ leaf) for i in range(2)]
    words = [mix((mix(i ^ k[0]) + k[1]) % 2**32) for i in range(6)]
    expected = torch.special.ndtri((torch.tensor(words) + 0.5) * 2.0**-32).view(2, 3)
    found = noise_of(seed, (2, 3), count=3, index=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def first_update(tx, grad, state):
    return tx.update([grad], state, inplace=False)[0][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own use
def test_noise_compiles_to_the_same_numbers():
    tx = optcore.add_noise(1.0, 0.0, seed=2**40 + 3)
    for size in (1000, 1024):  # whole vectors or not
        grad = torch.zeros(size)
        state = tx.init([grad])
        step = partial(first_update, tx)
        graph = make_fx(step)(grad, state)
        torch.testing.assert_close(torch.compile(graph)(grad, state), step(grad, state))


def test_noise_is_standard_normal():
    z = noise_of(7, (200_000,)).sort().values
    grid = (torch.arange(len(z)) + 0.5) / len(z)
    assert (torch.special.ndtr(z) - grid).abs().max() < 1.95 / len(z) ** 0.5  # Kolmogorov, 0.1 %


def test_noise_differs_by_seed_count_leaf_and_element_but_not_by_run():
    draws = [
        noise_of(0, (50,)),
        noise_of(1, (50,)),
        noise_of(0, (50,), 2),
        noise_of(0, (50,), 1, 1),
    ]
    together = torch.cat(draws)
    assert len(together.unique()) == 200
    assert torch.corrcoef(torch.stack(draws)).fill_diagonal_(0).abs().max() < 0.5
    assert torch.equal(noise_of(0, (50,)), draws[0])


def test_noise_fades_and_resumes_from_a_saved_state():
    tx = optcore.add_noise(eta=0.3, gamma=0.55, seed=-5)
    grads = [torch.zeros(3)]
    _, state = tx.update(grads, tx.init(grads))
    saved = pickle.loads(pickle.dumps(state))
    (second,), _ = tx.update(grads, state)
    assert torch.equal(tx.update(grads, saved)[0][0], second)
    standard = noise_of(-5, (3,), count=2)
    torch.testing.assert_close(second, standard * (0.3 / 2**0.55) ** 0.5)


def test_noise_under_vmap_has_a_stream_per_seed():
    seeds = torch.tensor([4, 9, 4])
    batched = torch.vmap(lambda seed: noise_of(seed, (5,)))(seeds)
    assert torch.equal(batched, torch.stack([noise_of(s, (5,)) for s in (4, 9, 4)]))


def test_noise_leaves_torch_generators_alone():
    before = torch.get_rng_state()
    noise_of(0, (3,))
    assert torch.equal(torch.get_rng_state(), before)


# --- hooks
