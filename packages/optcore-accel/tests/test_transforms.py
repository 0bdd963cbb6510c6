# SPDX-License-Identifier: Apache-2.0
"""torch.func, forward mode and torch.compile over steps with kernels: as without kernels."""

from itertools import product

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import optcore

CHAINS = {
    "momentum": lambda lr, x, fast: optcore.sgd(
        lr, momentum=x, dampening=0.2, use_accelerated_op=fast
    ),
    "adam": lambda lr, x, fast: optcore.adam(lr, (x, 0.9), eps=0.1, use_accelerated_op=fast),
    "adamw": lambda lr, x, fast: optcore.adamw(
        lr, (x, 0.9), eps=0.1, weight_decay=0.3, use_accelerated_op=fast
    ),
    "amsgrad": lambda lr, x, fast: optcore.amsgrad(lr, (x, 0.9), eps=0.1, use_accelerated_op=fast),
    "rmsprop": lambda lr, x, fast: optcore.rmsprop(
        lr, x, eps=0.1, momentum=0.5, centered=True, use_accelerated_op=fast
    ),
    "adagrad": lambda lr, x, fast: optcore.adagrad(lr, x, eps=0.1, use_accelerated_op=fast),
    "lion": lambda lr, x, fast: optcore.lion(lr, (x, 0.9), use_accelerated_op=fast),
}
STARTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
RATES = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)


def walked(name, fast, device="cpu"):
    """A function: parameters after two steps from w and a scalar with a rate and another number.

    The steps run on the device, what comes in and goes out is on the CPU.
    """

    def run(w, lr=0.2, x=0.6):
        w, lr, x = (v.to(device) if isinstance(v, torch.Tensor) else v for v in (w, lr, x))
        tx = CHAINS[name](lr, x, fast)
        params = {"w": w, "c": w.sum() * 0.1}
        state = tx.init(params)
        for k in range(2):
            grads = {"w": (params["w"] * 1.3 + k).sin(), "c": params["c"].cos()}
            params, state = tx.step(grads, state, params, inplace=False)
        return torch.cat([params["w"], params["c"][None]]).cpu()

    return run


def summed(run):
    return lambda *arguments: run(*arguments).cos().sum()


# name: something to compute from such a function
USES = {
    "grad": lambda f: grad(summed(f))(STARTS[0]),
    "grad of hyperparameters": lambda f: grad(summed(f), (0, 1, 2))(STARTS[0], RATES[0], RATES[3]),
    "nested grad": lambda f: grad(lambda w: grad(summed(f))(w).sin().sum())(STARTS[0]),
    "nested grad of hyperparameters": lambda f: grad(
        lambda lr: grad(summed(f), 2)(STARTS[0], lr, RATES[3])
    )(RATES[0]),
    "vjp": lambda f: vjp(f, STARTS[0])[1](torch.ones(4)),
    "jvp": lambda f: jvp(f, (STARTS[0],), (STARTS[1],)),
    "jvp of hyperparameters": lambda f: jvp(
        f, (STARTS[0], RATES[0], RATES[3]), (STARTS[1], RATES[1], RATES[1])
    ),
    "jvp of jvp": lambda f: jvp(
        lambda w: jvp(f, (w,), (STARTS[1],))[1], (STARTS[0],), (STARTS[2],)
    ),
    "jvp of grad": lambda f: jvp(grad(summed(f)), (STARTS[0],), (STARTS[1],)),
    "grad of jvp": lambda f: grad(lambda w: jvp(f, (w,), (STARTS[1],))[1].sum())(STARTS[0]),
    "jacfwd": lambda f: jacfwd(f)(STARTS[0]),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f))(STARTS[0]),
    "jvp of jvp of hyperparameters": lambda f: jvp(
        lambda r: jvp(lambda x: f(STARTS[0], r, x), (RATES[3],), (RATES[1],))[1],
        (RATES[0],),
        (RATES[2],),
    ),
    "jacfwd of jacfwd of jacrev": lambda f: jacfwd(jacfwd(jacrev(summed(f))))(STARTS[0]),
    "jacrev": lambda f: jacrev(f)(STARTS[0]),
    "jacrev of the rate": lambda f: jacrev(f, 1)(STARTS[0], RATES[0]),
    "hessian": lambda f: hessian(summed(f))(STARTS[0]),
    "hessian of hyperparameters": lambda f: hessian(summed(f), (1, 2))(
        STARTS[0], RATES[0], RATES[3]
    ),
    "vmap": lambda f: vmap(f)(STARTS),
    "vmap over another axis": lambda f: vmap(f, in_dims=1, out_dims=1)(STARTS.T),
    "vmap of grad": lambda f: vmap(grad(summed(f)))(STARTS),
    "grad of vmap": lambda f: grad(lambda w: summed(vmap(f))(w))(STARTS),
    "vmap over rates": lambda f: vmap(f, (None, 0))(STARTS[0], RATES),
    "vmap over both": lambda f: vmap(f)(STARTS, RATES),
    "vmap over all": lambda f: vmap(f)(STARTS, RATES, RATES * 2),
    "vmap of grad over rates": lambda f: vmap(grad(summed(f), 1), (None, 0))(STARTS[0], RATES),
    "grad of vmap over rates": lambda f: grad(lambda r: summed(vmap(f))(STARTS, r))(RATES),
    "grad of vmap, one rate": lambda f: grad(lambda r: summed(vmap(f, (0, None)))(STARTS, r))(
        RATES[0]
    ),
    "vmap of vmap": lambda f: vmap(vmap(f, (None, 0)), (0, None))(STARTS, RATES),
    "vmap of vmap of grad": lambda f: vmap(vmap(grad(summed(f)), (None, 0)), (0, None))(
        STARTS, RATES
    ),
    "vmap of hessian": lambda f: vmap(hessian(summed(f)))(STARTS),
    "vmap of jvp": lambda f: vmap(lambda w, t: jvp(f, (w,), (t,))[1])(STARTS, STARTS.flip(0)),
    "jvp of vmap": lambda f: jvp(vmap(f), (STARTS,), (STARTS.flip(0),)),
    "chunked vmap": lambda f: vmap(f, chunk_size=3)(STARTS),
    "vmap of one": lambda f: vmap(f)(STARTS[:1]),
}


# Rules differ in what is compiled, which is tested on every device; uses in Python alone.
EVERY = [*product(CHAINS, USES, ["cpu"]), *product(["adamw"], USES, ["cuda"])]


@pytest.mark.parametrize(("name", "use", "device"), EVERY, indirect=["device"])
def test_uses(name, use, device):
    ours, theirs = (USES[use](walked(name, fast, device)) for fast in (True, False))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_vmap_over_the_state(device):
    starts = STARTS.to(device)

    def once(fast):
        tx = CHAINS["adam"](0.2, 0.6, fast)

        def run(w, g, mu, nu):
            (state, *rest) = tx.init(w)
            return tx.step(g, (state._replace(mu=mu, nu=nu), *rest), w, inplace=False)[0]

        shared = vmap(run, (None, 0, 0, None))
        return shared(starts[0], starts, starts + 1, starts[1].abs()), vmap(run)(
            starts, starts + 1, starts + 2, starts.abs()
        )

    torch.testing.assert_close(once(True), once(False), rtol=1e-12, atol=1e-12)


def test_vmap_over_some_leaves(device):
    def once(fast):
        tx = CHAINS["adamw"](0.2, 0.6, fast)

        def run(w, fixed):
            params = [w, fixed, fixed[:0]]
            moved, _ = tx.step([w.sin(), fixed, fixed[:0]], tx.init(params), params)
            return tuple(moved)

        return vmap(run, (0, None), (0, None, None))(STARTS.to(device), torch.ones(2).to(device))

    torch.testing.assert_close(once(True), once(False), rtol=1e-12, atol=1e-12)


def test_ensembles_are_one_call_an_example_alone():
    """Bit for bit: a batch is a larger leaf."""
    run = walked("adam", True)
    assert torch.equal(vmap(run)(STARTS), torch.stack([run(w) for w in STARTS]))


@pytest.mark.parametrize("name", CHAINS)
def test_dual_levels(name, device):
    found = []
    for fast in (True, False):
        run = walked(name, fast, device)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(STARTS[0], STARTS[1])
            rate = forward_ad.make_dual(RATES[0], RATES[1])
            found.append(forward_ad.unpack_dual(run(dual, rate)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_a_wrapper_that_outlives_its_transform_is_refused_or_right():
    kept = []

    def leaky(w):
        kept.append(w * 2)
        return w.sum()

    grad(leaky)(STARTS[0])
    tx = optcore.adam(use_accelerated_op=True)
    params = [STARTS[0].clone()]
    plain = optcore.adam()
    found, _ = tx.step([kept[0]], tx.init(params), params, inplace=False)
    expected, _ = plain.step([kept[0]], plain.init(params), params, inplace=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(
    torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
)
@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_compiled_steps_take_the_torch_formula(name, device):
    torch._dynamo.reset()
    tx = CHAINS[name](0.2, 0.6, True)

    def step(params, grads, state):
        return tx.step(grads, state, params, inplace=False)

    params = [STARTS[0].to(device), STARTS[1, :2].to(device)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    found = compiled(params, [p.sin() for p in params], tx.init(params))
    torch.testing.assert_close(found, step(params, [p.sin() for p in params], tx.init(params)))
