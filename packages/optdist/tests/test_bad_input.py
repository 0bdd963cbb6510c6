# SPDX-License-Identifier: Apache-2.0
"""Wrong calls and settings: an error in words, before anything is sent."""

import importlib.util
import re
import socket
import threading

import pytest
import torch

import optdist


@optdist.parallelize(engine="local")
def loss(w, x, *more):
    return (w * x).mean()


@optdist.parallelize()
def not_scalar(w, x):
    return w * x


@optdist.parallelize()
def with_lock(lock, x):
    return x.mean()


@optdist.parallelize(reducer=lambda results: results)
def vectors(w, x):
    return w * x


GLOBAL = torch.ones(2, requires_grad=True)


@optdist.parallelize(replicate=["w"])
def of_global(w, x):
    return (w * GLOBAL * x).mean()


@optdist.parallelize()
def of_module(model, x):
    return model(x).mean()


def dual():
    with torch.autograd.forward_ad.dual_level():
        return loss(torch.autograd.forward_ad.make_dual(W.detach(), torch.ones(())), torch.ones(2))


def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", str(server.getsockname()[1]))
        return optdist.auto_init_rpc()(print)()


def nobody(x):
    return x.mean()


def outer(kind):
    @optdist.auto_init_rpc()
    def main():
        if kind == "function":
            return optdist.parallelize()(lambda x: x.mean())(torch.ones(2))
        if kind == "remote":
            return optdist.remote_sync_call(lambda x: x, args=(torch.ones(2),))
        if kind == "timeout":
            return optdist.remote_sync_call(torch.sum, args=(torch.ones(2),), timeout=0)
        if kind == "no part":
            return optdist.parallelize(lambda *args: [])(nobody)(torch.ones(2))
        if kind == "barrier":
            return optdist.barrier([])
        if kind == "again":
            return main()
        w = torch.ones((), requires_grad=True)
        with optdist.autograd.context() as number:
            if kind == "not a leaf":
                return optdist.autograd.grad(number, 2 * w, 1 * w)
            optdist.autograd.grad(number, 2 * w, w, retain_graph=True)
            return optdist.autograd.grad(number, 2 * w, w)

    return main()


W = torch.tensor(2.0, requires_grad=True)
CALLS = {
    "no tensor": (
        lambda: loss(2.0, 3.0),
        ValueError,
        "loss: expected a tensor with a dimension to split in the arguments, got none; give a "
        "batch, and leave it out of replicate=",
    ),
    "0-d batch": (
        lambda: loss(W, torch.tensor(1.0)),
        ValueError,
        "loss: expected a tensor with a dimension to split in the arguments, got none; ",
    ),
    "batch sizes": (
        lambda: loss(W, torch.ones(3), {"y": torch.ones(4)}),
        ValueError,
        "loss: expected as many rows at args[2]['y'] as at args[1], 3, got 4; name arguments that "
        "every worker gets whole in replicate=",
    ),
    "no rows": (
        lambda: loss(W, torch.ones(0)),
        ValueError,
        "loss: expected at least one row at args[1], got none",
    ),
    "no such dimension": (
        lambda: optdist.parallelize(optdist.dim_partitioner(1))(loss.optdist_function)(
            W, torch.ones(2)
        ),
        ValueError,
        "loss: expected a dimension 1 to split at args[1], got shape [2]; ",
    ),
    "sparse": (
        lambda: optdist.parallelize(replicate=["w"])(loss.optdist_function)(
            torch.eye(2).to_sparse(), torch.ones(2)
        ),
        TypeError,
        "loss: expected dense tensors, got torch.sparse_coo on cpu; make them dense",
    ),
    "unpicklable argument": (
        lambda: with_lock(threading.Lock(), torch.ones(2)),
        TypeError,
        "with_lock: expected arguments that pickle can send, got one that it refuses",
    ),
    "unpicklable function": (
        lambda: outer("function"),
        TypeError,
        "<lambda>: expected a function that other processes can import, got outer.<locals>.main."
        "<locals>.<lambda>; define it at the top level of a module",
    ),
    "unpicklable remote function": (
        lambda: outer("remote"),
        TypeError,
        "remote_async_call: expected a function that other processes can import",
    ),
    "not a scalar": (
        lambda: not_scalar(W, torch.ones(2)),
        TypeError,
        "not_scalar: expected a floating scalar tensor, or (scalar, aux), from each chunk, got "
        "float64[2]; return a loss, or give a reducer that takes such results",
    ),
    "not a scalar, with gradient": (
        lambda: vectors(W, torch.ones(2)),
        TypeError,
        "vectors: expected one scalar from each chunk where gradients are wanted, got float64[2] "
        "that requires grad; return a loss, or detach it",
    ),
    "second derivative": (
        lambda: torch.autograd.grad(loss(W, torch.ones(2)), W, create_graph=True),
        RuntimeError,
        "parallelize: expected a first derivative, got create_graph=True; ",
    ),
    "no world": (
        lambda: optdist.parallelize(engine="rpc")(loss.optdist_function)(W, torch.ones(2)),
        RuntimeError,
        "parallelize: expected a world of workers for engine='rpc', got none; ",
    ),
    "no RPC": (
        lambda: optdist.remote_sync_call(torch.sum, args=(W,)),
        RuntimeError,
        "remote_async_call: expected RPC to run, got none; ",
    ),
    "two worlds": (
        lambda: outer("again"),
        RuntimeError,
        "auto_init_rpc: expected no RPC in this process, got one that runs; ",
    ),
    "no such worker": (
        lambda: optdist.get_worker_id("nobody"),
        ValueError,
        "get_worker_id: expected a rank below 1 or one of the names ['worker0'], got 'nobody'",
    ),
    "rank": (
        lambda: optdist.on_rank(-1),
        ValueError,
        "on_rank: expected ranks, integers from 0, got -1",
    ),
    "replicate": (
        lambda: optdist.parallelize(replicate=["v"])(not_scalar.optdist_function),
        ValueError,
        "parallelize: expected replicate= to name arguments among ['w', 'x'], got 'v'",
    ),
    "remote timeout": (
        lambda: outer("timeout"),
        ValueError,
        "remote_async_call: expected a timeout above 0 s, got 0",
    ),
    "start_timeout": (
        lambda: optdist.auto_init_rpc(start_timeout=0),
        ValueError,
        "auto_init_rpc: expected a start_timeout above 0 s, got 0",
    ),
    "rpc_timeout": (
        lambda: optdist.auto_init_rpc(
            rpc_backend_options=optdist.rpc.TensorPipeRpcBackendOptions(rpc_timeout=0)
        ),
        ValueError,
        "auto_init_rpc: expected an rpc_timeout above 0 s, got 0.0",
    ),
    "a context without gradients": (
        lambda: outer("used context"),
        RuntimeError,
        "grad: expected a context without gradients, got one where backward was called; open a "
        "context for each derivative",
    ),
    "inputs that are not leaves": (
        lambda: outer("not a leaf"),
        ValueError,
        "grad: expected leaves as inputs, got a computed tensor []; detach it before the remote",
    ),
    "no part": (
        lambda: outer("no part"),
        ValueError,
        "nobody: expected at least one part from the partitioner, got none",
    ),
    "barrier": (
        lambda: outer("barrier"),
        ValueError,
        "barrier: expected the caller among the names, got ranks [] on 0",
    ),
    "keepdim": (
        lambda: optdist.dim_partitioner(keepdim=False),
        ValueError,
        "dim_partitioner: expected keepdim=True without exclusive, got False; ",
    ),
    "dim": (
        lambda: optdist.dim_partitioner("rows"),
        TypeError,
        "dim_partitioner: expected an integer for dim, got 'rows'",
    ),
    "workers": (
        lambda: optdist.dim_partitioner(workers=[]),
        ValueError,
        "dim_partitioner: expected at least one of the workers, got none",
    ),
    "results": (
        lambda: optdist.mean_reducer([]),
        ValueError,
        "mean_reducer: expected at least one result, got none",
    ),
    "kinds of results": (
        lambda: optdist.sum_reducer([1.0]),
        TypeError,
        "sum_reducer: expected tensors, got float",
    ),
    "weights": (
        lambda: optdist.mean_reducer([torch.ones(())], weights=[1, 2]),
        ValueError,
        "mean_reducer: expected 1 weights, one a result, got 2",
    ),
    "weights of nothing": (
        lambda: optdist.mean_reducer([torch.ones(())] * 2, weights=[0, 0]),
        ValueError,
        "mean_reducer: expected weights whose sum is not 0, got a sum of 0",
    ),
    "a mean of whole numbers": (
        lambda: optdist.mean_reducer([torch.tensor(1), torch.tensor(4)], weights=[2, 1]),
        TypeError,
        "mean_reducer: expected floating-point numbers, got torch.int64; convert them",
    ),
    "a global that requires grad": (
        lambda: of_global(W, torch.ones(3, 2)),
        TypeError,
        "of_global: expected gradients for arguments only, got a result that depends on GLOBAL, "
        "which requires grad and is none; pass it as an argument, or detach it",
    ),
    "a parametrized module": (
        lambda: of_module(
            torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 1)), torch.ones(3, 2)
        ),
        TypeError,
        "of_module: expected modules that pickle can send, got a parametrized one (torch.nn.utils."
        "parametrizations, such as weight_norm); send its parameters, ",
    ),
    "a transform": (
        lambda: torch.func.grad(lambda w: loss(w, torch.ones(2)))(W.detach()),
        RuntimeError,
        "loss: expected no transform of torch.func around a parallelized function, got one (grad, "
        "jvp, vmap, ...); use it inside the function, or torch.autograd.grad around it",
    ),
    "a tangent": (
        dual,
        RuntimeError,
        "loss: expected tensors without tangents, got one of forward-mode AD; use it inside the "
        "function, or torch.autograd.grad around it",
    ),
    "a port in use": (taken_port, OSError, "auto_init_rpc: expected to listen at 127.0.0.1:"),
    "parallelize without parentheses": (
        lambda: optdist.parallelize(nobody)(torch.ones(2)),
        TypeError,
        "parallelize: expected one function to decorate, got ['Tensor']; write @parallelize(), "
        "with parentheses",
    ),
    "parallelize_async without parentheses": (
        lambda: optdist.parallelize_async(nobody)(W, torch.ones(2)),
        TypeError,
        "parallelize_async: expected one function to decorate, got ['Tensor', 'Tensor']; ",
    ),
    "auto_init_rpc without parentheses": (
        lambda: optdist.auto_init_rpc(nobody)(),
        TypeError,
        "auto_init_rpc: expected one function to decorate, got nothing; write @auto_init_rpc(), ",
    ),
    "replicate out of range": (
        lambda: optdist.parallelize(replicate=[2])(nobody),
        ValueError,
        "parallelize: expected replicate= to number arguments below 1, got 2",
    ),
    "kinds in replicate": (
        lambda: optdist.parallelize(replicate=[True])(nobody),
        TypeError,
        "parallelize: expected names or positions in replicate=, got bool",
    ),
    "endless start_timeout": (
        lambda: optdist.auto_init_rpc(start_timeout=float("inf")),
        ValueError,
        "auto_init_rpc: expected a start_timeout of at most 1000000 s, got inf; waits are bounded",
    ),
    "backward": (
        lambda: optdist.backward(0, torch.ones(2)),
        ValueError,
        "backward: expected scalars, got shapes [[2]]; reduce them first",
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_is_refused_in_words(case):
    call, kind, text = CALLS[case]
    with pytest.raises(kind, match=re.escape(text)):
        call()


OPTIONS = [
    ("partitioner", 1.5, TypeError, "a partitioner, a rank or a name, got float"),
    ("partitioner", True, TypeError, "a partitioner, a rank or a name, got bool"),
    ("reducer", "mean", TypeError, "a function as reducer, got str"),
    ("timeout", 0, ValueError, "a timeout above 0 s, got 0"),
    ("timeout", "3", TypeError, "a timeout in seconds, got str"),
    ("timeout", float("nan"), ValueError, "a timeout above 0 s, got nan"),
    ("timeout", 1e12, ValueError, "a timeout of at most 1000000 s, got 1000000000000.0; "),
    ("replicate", "w", TypeError, "a sequence for replicate, got a string; ['w']?"),
    ("chunks_per_worker", 0, ValueError, "chunks_per_worker >= 1, got 0"),
    ("chunks_per_worker", 1.5, TypeError, "an integer for chunks_per_worker, got 1.5"),
    (
        "on_worker_lost",
        "ignore",
        ValueError,
        "on_worker_lost 'redispatch' or 'raise', got 'ignore'",
    ),
    ("min_workers", 0, ValueError, "min_workers >= 1, got 0"),
    ("min_workers", "1", TypeError, "an integer for min_workers, got '1'"),
    ("engine", "mpi", ValueError, "engine 'local', 'rpc', 'ray' or None, got 'mpi'"),
]


@pytest.mark.parametrize("decorator", [optdist.parallelize, optdist.parallelize_async])
@pytest.mark.parametrize(("name", "value", "kind", "text"), OPTIONS)
def test_options_are_refused_in_words(name, value, kind, text, decorator):
    with pytest.raises(kind, match=re.escape(f"parallelize: expected {text}")):
        decorator(**{name: value})


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is here")
def test_ray_that_is_not_installed():
    text = "parallelize(engine='ray'): ray is not installed; pip install 'optdist[ray]'"
    with pytest.raises(ImportError, match=re.escape(text)):
        optdist.parallelize(engine="ray")


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"RANK": "two"}, "get_world_info: expected a number in RANK, got 'two'"),
        (
            {"RANK": "2", "WORLD_SIZE": "2"},
            "get_world_info: expected 0 <= RANK < WORLD_SIZE, got 2 and 2",
        ),
    ],
)
def test_variables_are_read_when_asked(monkeypatch, variables, text):
    assert optdist.get_world_info() == (0, 1, 0, 1)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(text)):
        optdist.get_world_info()


def test_workers_without_a_port(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(ValueError, match="auto_init_rpc: expected MASTER_PORT beside WORLD_SIZE"):
        optdist.auto_init_rpc()(print)()
