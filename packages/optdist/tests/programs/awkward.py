# SPDX-License-Identifier: Apache-2.0
"""Calls that once went wrong or on for ever; rank 0 writes what became of them."""

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
import types
from pathlib import Path

import torch

import optdist


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        return (self.w * x).square().mean()

    def loss(self, x):
        return self(x)


def of_model(model, x):
    return model(x)


def error(value, wanted, learned):
    pairs = [(value, wanted)]
    pairs += zip(torch.autograd.grad(value, learned), torch.autograd.grad(wanted, learned))
    return max((a - b).abs().max().item() for a, b in pairs)


@optdist.parallelize()
def fails_here(model, x, fails):
    if fails and optdist.get_rank() == 0:
        raise ValueError("here")
    if fails:
        time.sleep(0.5)  # still at work when the caller has given up
    return model(x).square().mean()


def late_writer():
    """A chunk of a call that failed writes after the next call has begun."""
    big, small = torch.nn.Linear(500, 1), torch.nn.Linear(2, 50)
    x = torch.randn(6, 500)
    fails_here(big, x, False)
    with contextlib.suppress(ValueError):
        fails_here(small, torch.randn(6, 2), True)
    return error(fails_here(big, x, False), big(x).square().mean(), big.weight)


def stateful(make):
    """A function that carries tensors of its own learns them in every process."""
    model, x = Model(), torch.arange(6.0)
    return error(optdist.parallelize()(make(model))(x), model(x), model.w)


@optdist.parallelize(timeout=10)
def raises_of_its_own(x):
    if optdist.get_rank() == 1:
        module = types.ModuleType("only_there")
        exec("class Own(Exception): pass", module.__dict__)
        sys.modules["only_there"] = module
        raise module.Own("no")
    return x.mean()


def raises(x):
    raise RuntimeError("EOF: end of file, says the function")


def unpicklable(x):
    return threading.Lock()


def told(func):
    try:
        return func()
    except (RuntimeError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def remote(func):
    return told(lambda: optdist.remote_sync_call(func, args=(torch.ones(3),), partitioner=1))


def futures():
    first, second = (
        optdist.remote_async_call(torch.add, args=(torch.ones(3), n), reducer=torch.cat)
        for n in (1, 2)
    )
    both = torch.futures.collect_all([first.then(lambda f: f.value() * 10), second]).wait()
    return [future.value().tolist() for future in both]


@optdist.parallelize(replicate=["w"], chunks_per_worker=3)
def squares(w, x):
    return (w * x).square().mean()


squares_later = optdist.parallelize_async(replicate=["w"], chunks_per_worker=3)(
    squares.optdist_function
)


def at_once():
    """Calls of one function overlap: one has the shared memory, the others send messages."""
    w, x = torch.ones(3, requires_grad=True), torch.randn(9, 3)
    found = [squares_later(w, x * n) for n in range(1, 5)]
    pairs = [(f.wait(), (w * x * n).square().mean()) for n, f in enumerate(found, start=1)]
    return max(error(value, wanted, w) for value, wanted in pairs)


@optdist.parallelize_async()
def noisy(x):
    return x.mean() + torch.rand(())


def random_numbers():
    """Those of a future's chunks and of the program do not meet."""
    found = []
    for draws in (0, 40):
        torch.manual_seed(1)
        future = noisy(torch.zeros(3))
        drawn = [torch.rand(()).item() for _ in range(40)]
        for _ in range(draws):
            torch.rand(3)
        found.append((future.wait().item(), drawn))
    return found[0] == found[1]


@optdist.parallelize(replicate=["w"])
def product(w, x):
    return (x @ w).float().square().mean()


def autocast():
    w, x = torch.randn(16, 16, dtype=torch.float32), torch.randn(6, 16, dtype=torch.float32)
    exact = product(w, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, wanted = product(w, x), product.optdist_function(w, x)
    return [(found - wanted).abs().item(), (exact - wanted).abs().item()]


def by_rank(w, x):
    return [(rank, (w, part), {}) for rank, part in enumerate(x.chunk(3))]


def mean(w, x):
    return (w * x).mean()


def pid():
    return os.getpid()


def absent():
    """Worker 2 is named, and lost, call after call."""
    parted = optdist.parallelize(by_rank, timeout=10)(mean)
    strict = [
        optdist.parallelize(partitioner, timeout=10, on_worker_lost="raise")(mean)
        for partitioner in (by_rank, 2, optdist.dim_partitioner(workers=[2]))
    ]
    w, x = torch.ones((), requires_grad=True), torch.arange(9.0)
    (victim,) = optdist.remote_sync_call(pid, partitioner=2)
    os.kill(victim, signal.SIGKILL)
    found = [error(parted(w, x), mean(w, x), w) for _ in range(3)]
    return found, [told(lambda f=f: f(w, x).item()) for f in strict for _ in range(2)]


CASES = {
    "late writer": late_writer,
    "bound": lambda: stateful(lambda model: model.loss),
    "module": lambda: stateful(lambda model: model),
    "partial": lambda: stateful(lambda model: functools.partial(of_model, model)),
    "own exception": lambda: told(lambda: raises_of_its_own(torch.ones(3))),
    "remote error": lambda: remote(raises),
    "remote result": lambda: remote(unpicklable),
    "futures": futures,
    "all live": lambda: (squares(torch.ones(3), torch.ones(9, 3)), squares.last_report.chunks)[1],
    "at once": at_once,
    "random numbers": random_numbers,
    "autocast": autocast,
    "absent": absent,
}


@optdist.auto_init_rpc(lambda: torch.set_default_dtype(torch.float64))
@optdist.rank_zero_only
def again():
    """The second start in the same processes."""
    return error(*(f(W, torch.arange(6.0)) for f in (squares_of, squares_of.optdist_function)), W)


W = torch.ones((), requires_grad=True)


@optdist.parallelize()
def squares_of(w, x):
    return (w * x).square().mean()


@optdist.auto_init_rpc(lambda: torch.set_default_dtype(torch.float64))
@optdist.rank_zero_only
def main():
    return {name: case() for name, case in CASES.items()}


if __name__ == "__main__":
    W = W.detach().double().requires_grad_()
    started = again()
    found = main()
    if found is not None:
        Path(sys.argv[1]).write_text(json.dumps({**found, "again": started}))
