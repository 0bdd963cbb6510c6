# SPDX-License-Identifier: Apache-2.0
"""What a loop takes at its peak: K steps plain, about 2 sqrt(K) with checkpoints."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import optdiff

N = 1000


class Meter(TorchDispatchMode):
    """Bytes of the living storages that operations made; the peak is exact to 2 %."""

    def __init__(self):
        super().__init__()
        self._alive, self._now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if not isinstance(result, torch.Tensor) or result._is_zerotensor():
                continue  # the latter have no storage
            storage = result.untyped_storage()
            known, size = self._alive.get(storage.data_ptr(), (None, 0))
            if known is None or known.expired():  # an address may serve again
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), storage.nbytes())
                self._now += storage.nbytes() - size
        if self._now > 1.02 * self.peak:
            self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
            self._now = sum(size for _, size in self._alive.values())
            self.peak = max(self.peak, self._now)
        return results


def by_autograd(w, i, phi):
    (g,) = torch.autograd.grad((w * phi).sin().square().sum(), w, create_graph=True)
    return w - 0.1 * g


def by_func(w, i, phi):
    return w - 0.1 * torch.func.grad(lambda w: (w * phi).sin().square().sum())(w)


def peak(run, steps, step=by_autograd, **options):
    """Peak in carries of N elements."""
    phi = torch.full((), 0.7, requires_grad=True)
    w = torch.linspace(-1, 1, N, requires_grad=True)
    with Meter() as meter:
        run(lambda phi: optdiff.unroll(step, w.detach() + w, steps, phi, **options).sum(), phi)
    return meter.peak / (8 * N)


def backward(loop, phi):
    torch.autograd.grad(loop(phi), phi)


def second_order(loop, phi):
    (first,) = torch.autograd.grad(loop(phi), phi, create_graph=True)
    torch.autograd.grad(first, phi)


def by_torch_func(loop, phi):
    torch.func.grad(loop)(phi.detach())


@pytest.mark.parametrize("steps", [10, 100, 1000])
def test_growth(steps):
    per_step = peak(backward, 50) / 50
    assert peak(backward, steps) > 0.9 * steps * per_step
    assert peak(backward, steps, checkpoint="sqrt") < (steps**0.5 + 3) * (per_step + 1)


def test_of_a_second_derivative():
    assert peak(second_order, 144, checkpoint="sqrt") < peak(second_order, 144) / 4


def test_under_torch_func():
    plain = peak(by_torch_func, 144, by_func)
    assert peak(by_torch_func, 144, by_func, checkpoint="sqrt") < plain / 4


def test_of_truncation():
    assert peak(backward, 144, truncate=10) < 1.2 * peak(backward, 10) + 1


def test_of_first_order():
    def run(steps):
        w = torch.linspace(-1, 1, N, requires_grad=True)
        with Meter() as meter:
            last = optdiff.unroll(by_autograd, w, steps, torch.tensor(0.7), first_order=True)
            torch.autograd.grad(last.sum(), w)
        return meter.peak

    assert run(100) <= run(10) + 8 * N


def test_of_forward_mode():
    def forward(steps):
        start, phi = torch.linspace(-1, 1, N), torch.tensor(0.7)
        with Meter() as meter:
            optdiff.forward_hypergradient(lambda w, phi: w.sum(), by_func, start, steps, phi)
        return meter.peak

    assert forward(100) <= forward(10) + 8 * N
