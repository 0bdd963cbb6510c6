# SPDX-License-Identifier: Apache-2.0
"""Functions to run in parallel, and what the same gives in one process."""

import functools

import torch

import optcore
import optdiff
import optdist

STEPS = 3


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.hidden = torch.nn.Linear(2, 4)
        self.out = torch.nn.Linear(4, 1)
        self.out.bias.requires_grad_(False)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x):
        return self.out(torch.tanh(self.hidden(x * self.scale)))


def tasks(rows):
    generator = torch.Generator().manual_seed(rows)
    return {
        "x": torch.randn(rows, 6, 2, generator=generator),
        "y": torch.randn(rows, 6, 1, generator=generator),
    }


def error(found, wanted):
    pairs = zip(found, wanted, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def task_loss(net, params, x, y):
    return (torch.func.functional_call(net, params, (x,)) - y).square().mean()


def explicit(net, x, y):
    params = dict(net.named_parameters())
    opt = optcore.adam(lr=0.1)
    state = opt.init(params)
    for _ in range(STEPS):
        loss = task_loss(net, params, x[:3], y[:3])
        names = [name for name, p in params.items() if p.requires_grad]
        grads = torch.autograd.grad(loss, [params[n] for n in names], create_graph=True)
        tree = dict.fromkeys(params) | dict(zip(names, grads, strict=True))
        updates, state = opt.update(tree, state, params, inplace=False)
        params = optcore.apply_updates(params, updates, inplace=False)
    return task_loss(net, params, x[3:], y[3:])


def ridge_condition(w, weight, x, y):
    return x.T @ (x @ w - y) + weight.exp() * w


@optdiff.custom_root(ridge_condition)
def ridge(w, weight, x, y):
    with torch.no_grad():
        return torch.linalg.solve(x.T @ x + weight.exp() * torch.eye(x.shape[1]), x.T @ y)


def implicit(weight, x, y):
    w = ridge(None, weight, x[:3], y[:3])
    return (x[3:] @ w - y[3:]).square().mean()


def evolved(theta, x, y):
    generator = torch.Generator().manual_seed(5)
    estimate = optdiff.zero_order(
        torch.distributions.Normal(0.0, 1.0), method="antithetic", num_samples=4, sigma=0.1,
        generator=generator,
    )  # fmt: skip
    return estimate(functools.partial(residual, x=x, y=y))(theta)


def residual(theta, x, y):
    return (x @ theta - y).square().mean()


@optdist.parallelize()
def explicit_loss(net, batch):
    pairs = zip(batch["x"], batch["y"], strict=True)
    return torch.stack([explicit(net, x, y) for x, y in pairs]).mean()


@optdist.parallelize()
def implicit_loss(weight, batch):
    pairs = zip(batch["x"], batch["y"], strict=True)
    return torch.stack([implicit(weight, x, y) for x, y in pairs]).mean()


@optdist.parallelize(replicate=["theta"])
def evolved_loss(theta, batch):
    pairs = zip(batch["x"], batch["y"], strict=True)
    return torch.stack([evolved(theta, x, y) for x, y in pairs]).mean()


def of_net(parallel, rows):
    net = Net()
    learned = [p for p in net.parameters() if p.requires_grad]
    return compare(parallel, learned, net, tasks(rows))


def compare(parallel, learned, *args):
    value = parallel(*args)
    serial = parallel.optdist_function(*args)
    found = torch.autograd.grad(value, learned)
    wanted = torch.autograd.grad(serial, learned)
    assert max(g.abs().max().item() for g in wanted) > 1e-4
    return {"value": error([value], [serial]), "grad": error(found, wanted)}


def by_backward():
    net = Net()
    (3 * explicit_loss(net, tasks(5))).backward()
    found = [p.grad for p in net.parameters() if p.requires_grad]
    again = Net()
    (3 * explicit_loss.optdist_function(again, tasks(5))).backward()
    return {"grad": error(found, [p.grad for p in again.parameters() if p.requires_grad])}


@optdist.parallelize(reducer=optdist.sum_reducer, replicate=(0,))
def tree_sum(params, pair, power=2):
    x, scale = pair
    return ((x @ params["w"] + params["b"][0]).pow(power) * scale).sum()


def trees():
    params = {"w": torch.randn(2, requires_grad=True), "b": [torch.ones(3, requires_grad=True)]}
    params["b"][0] = params["b"][0][:1]
    scale = torch.rand(7, requires_grad=True)
    learned = [params["w"], params["b"][0], scale]
    return compare(tree_sum, learned, params, (torch.randn(7, 2), scale))


@optdist.parallelize(partitioner=optdist.exclusive_batch_partitioner)
def one_row(w, row):
    assert row.shape == (3,)
    return (w * row).square().sum()


def exclusive():
    w, x = torch.tensor(1.5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    (found,) = torch.autograd.grad(one_row(w, x), [w])
    (wanted,) = torch.autograd.grad((w * x).square().sum(-1).mean(), [w])
    (rows,) = torch.autograd.grad(one_row(w, x), [x])
    (wanted_rows,) = torch.autograd.grad((w * x).square().sum(-1).mean(), [x])
    return {"grad": error([found, rows], [wanted, wanted_rows])}


def product(results):
    return torch.stack(results).prod()


@optdist.parallelize(partitioner=optdist.dim_partitioner(1), reducer=product, chunks_per_worker=2)
def column_loss(net, columns):
    return net(columns.T).square().mean()


def custom_reducer():
    net, columns = Net(), torch.randn(2, 5).T.contiguous().T
    learned = [p for p in net.parameters() if p.requires_grad]
    value = column_loss(net, columns)
    chunks = column_loss.last_report.chunks
    sizes = [5 // chunks + (i < 5 % chunks) for i in range(chunks)]
    serial = product([net(c.T).square().mean() for c in columns.split(sizes, 1)])
    found, wanted = (torch.autograd.grad(v, learned) for v in (value, serial))
    return {"value": error([value], [serial]), "grad": error(found, wanted)}


@optdist.parallelize(chunks_per_worker=3)
def with_aux(net, x):
    residuals = net(x).squeeze(-1)
    return residuals.square().mean(), {"residuals": residuals, "word": "kept"}


def aux():
    net, x = Net(), torch.randn(8, 2)
    value, extra = with_aux(net, x)
    assert all(part["word"] == "kept" and not part["residuals"].requires_grad for part in extra)
    found = torch.cat([part["residuals"] for part in extra])
    return {"value": error([value, found], [net(x).square().mean(), net(x).squeeze(-1)])}


def halves(w, x):
    return [(0, (w, x[:2]), None), ("worker1", (w,), {"x": x[2:]})]


@optdist.parallelize(partitioner=halves, reducer=optdist.sum_reducer)
def own_parts(w, x):
    return (w * x).square().sum()


def partition_function():
    w, x = torch.randn(3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    return compare(own_parts, [w, x], w, x)


@optdist.parallelize(partitioner="worker1")
def elsewhere(w, x):
    return (w * x).square().sum()


def whole_call():
    w, x = torch.randn(3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    found = compare(elsewhere, [w, x], w, x)
    assert list(elsewhere.last_report.busy) == ["worker1"]
    return found


@optdist.parallelize_async()
def later(net, x):
    return net(x).square().mean()


def futures():
    net = Net()
    learned = [p for p in net.parameters() if p.requires_grad]
    batches = [torch.randn(n, 2) for n in (3, 4, 5)]
    started = [later(net, x) for x in batches]
    values = [future.wait() for future in started]
    wanted = [later.optdist_function(net, x) for x in batches]
    found = torch.autograd.grad(sum(values), learned)
    return {"grad": error(found, torch.autograd.grad(sum(wanted), learned))}


@optdist.parallelize(partitioner=optdist.exclusive_batch_partitioner)
def noisy(w, row):
    return (w * torch.randn(4)).sum() + 0 * row.sum()


def noise():
    """Random numbers do not depend on which worker draws them."""
    w, x = torch.tensor(2.0, requires_grad=True), torch.zeros(6, 1)
    torch.manual_seed(11)
    first, after = noisy(w, x), torch.rand(())
    torch.manual_seed(11)
    with_one = optdist.parallelize(partitioner=optdist.exclusive_batch_partitioner, engine="local")(
        noisy.optdist_function
    )
    second = with_one(w, x)
    return {"value": error([first, after], [second, torch.rand(())])}


def remote_square(w, x):
    return (w * x).square().sum()


def wire():
    """Gradients through plain remote calls, by distributed autograd."""
    w, x = torch.randn(3, requires_grad=True), torch.randn(4, 3)
    (wanted,) = torch.autograd.grad((w * x).square().sum(), [w])
    with optdist.autograd.context() as number:
        parts = optdist.remote_sync_call(
            remote_square, args=(w, x), partitioner="worker1", reducer=optdist.sum_reducer
        )
        (found,) = optdist.autograd.grad(number, parts, w)
    with optdist.autograd.context() as number:
        value = optdist.remote_async_call(remote_square, args=(w, x), partitioner=1).wait()[0]
        optdist.backward(number, value)
    return {"grad": error([found, w.grad], [wanted, wanted])}


def higher_orders():
    """What cannot cross is refused in words."""
    net, found = Net(), []
    learned = [p for p in net.parameters() if p.requires_grad]
    try:
        torch.autograd.grad(explicit_loss(net, tasks(4)), learned, create_graph=True)
    except RuntimeError as refused:
        found.append(str(refused))
    with optdist.autograd.context() as number:
        try:
            optdist.autograd.grad(number, torch.ones(()), learned, create_graph=True)
        except ValueError as refused:
            found.append(str(refused))
    return found


def without_grad():
    net, x = Net(), torch.randn(4, 2)
    with torch.no_grad():
        value = later(net, x).wait()
    assert not value.requires_grad
    return {"value": error([value], [net(x).square().mean()])}


def unused():
    net, x = Net(), torch.randn(4, 2)
    spare = torch.ones((), requires_grad=True)
    value = with_spare(net, spare, x)
    grads = torch.autograd.grad(value, [net.out.weight, spare], allow_unused=True)
    assert grads[1] is None
    serial = net(x).square().mean()
    return {"grad": error(grads[:1], torch.autograd.grad(serial, [net.out.weight]))}


@optdist.parallelize()
def with_spare(net, spare, x):
    return net(x).square().mean()


def of_weight(rows):
    weight = torch.zeros((), requires_grad=True)
    return compare(implicit_loss, [weight], weight, tasks(rows))


def of_theta(rows):
    theta = torch.ones(2, 1, requires_grad=True)
    return compare(evolved_loss, [theta], theta, tasks(rows))


MAML = {
    "explicit": functools.partial(of_net, explicit_loss),
    "implicit": of_weight,
    "zero-order": of_theta,
}
CASES = {
    **{
        f"{mode}, {rows} rows": functools.partial(case, rows)
        for mode, case in MAML.items()
        for rows in (2, 5, 15)
    },
    "backward": by_backward,
    "trees": trees,
    "exclusive": exclusive,
    "custom reducer": custom_reducer,
    "aux": aux,
    "partition function": partition_function,
    "whole call": whole_call,
    "futures": futures,
    "noise": noise,
    "wire": wire,
    "higher orders": higher_orders,
    "no grad": without_grad,
    "unused": unused,
}
