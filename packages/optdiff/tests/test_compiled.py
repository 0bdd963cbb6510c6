# SPDX-License-Identifier: Apache-2.0
"""torch.compile around this package's functions: the numbers of eager, or a clear error."""

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import optcore
import optdiff
from optdiff import fixed_point, linear_solve, minimize, root

# Of Dynamo itself, where a graph goes on after a break.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.skipif(
        torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
    ),
]

A = torch.tensor([[3.0, 0.5, 0.1], [0.2, 2.0, 0.3], [0.1, 0.4, 2.5]], dtype=torch.float64)
GENERATOR = torch.Generator()
START = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def optimality(x, a):
    return A @ x + x**3 / 10 - a


@optdiff.custom_root(optimality)
def solve(init, a):
    return root.newton(optimality, torch.zeros(3), a).solution


@optdiff.custom_fixed_point(lambda x, a: torch.cos(x) * a / 4)
def equilibrium(init, a):
    return fixed_point.anderson(lambda x: torch.cos(x) * a / 4, torch.zeros(3)).solution


def step(w, i, a):
    return w - 0.1 * grad(lambda w: ((w - a) ** 4).sum())(w)


def step_of_autograd(w, i, a):
    (g,) = torch.autograd.grad(((w - a) ** 4).sum(), w, create_graph=True)
    return w - 0.1 * g


def first():
    return torch.zeros(3).requires_grad_()


def objective(x, a):
    return ((x - a) ** 4).sum() + (x**2).sum()


@optdiff.zero_order(torch.randn, "antithetic", num_samples=3, generator=GENERATOR)
def smoothed(p):
    return (p**3).sum()


class Fit(optdiff.nn.ImplicitMetaGradientModule):
    def __init__(self, target):
        super().__init__()
        self.target = target
        self.w = nn.Parameter(torch.zeros(3))

    def optimality(self):
        return 2 * (self.w - self.target)

    def solve(self):
        with torch.no_grad():
            self.w.copy_(self.target)
        return self


def forward_mode(a):
    value, slope = optdiff.forward_hypergradient(
        lambda w, a: (w**2).sum(), step, torch.zeros(3), 3, a
    )
    return value + (slope * a).sum()


AROUND = {
    "custom_root": lambda a: solve(None, a),
    "custom_root, batched": lambda a: vmap(lambda s: solve(None, s * a))(torch.arange(1.0, 3.0)),
    "custom_root, jacrev": lambda a: torch.func.jacrev(lambda b: solve(None, b))(a) @ a,
    "custom_root, grad": grad(lambda a: (solve(None, a) ** 2).sum()),
    "custom_fixed_point": lambda a: equilibrium(None, a),
    "root_vjp": lambda a: optdiff.root_vjp(optimality, solve(None, START), (a,), a)[0],
    "root_jvp": lambda a: optdiff.root_jvp(optimality, solve(None, START), (a,), (a,)),
    "solve_gmres": lambda a: linear_solve.solve_gmres()(A + torch.diag(a), a),
    "solve_cg": lambda a: linear_solve.solve_cg()(lambda x: A.mT @ (A @ x) + a**2 * x, a),
    "solve_lu": lambda a: linear_solve.solve_lu()(A + torch.diag(a), a),
    "unroll": lambda a: optdiff.unroll(step, first(), 3, a),
    "unroll, autograd": lambda a: optdiff.unroll(step_of_autograd, first(), 3, a),
    "unroll, checkpoint": lambda a: optdiff.unroll(step_of_autograd, first(), 3, a, checkpoint=2),
    "forward_hypergradient": forward_mode,
    "zero_order": smoothed,
    "implicit module": lambda a: Fit(a).solve().w,
    "minimize": lambda a: a * minimize.lbfgs(objective, torch.zeros(3), a).solution,
}


def value_and_slope(fn):
    GENERATOR.manual_seed(0)
    theta = START.clone().requires_grad_()
    value = fn(theta)
    return value.detach(), torch.autograd.grad(value, theta)[0]


@pytest.mark.parametrize("name", AROUND)
def test_around_it_is_compiled_and_it_is_right(name):
    def fn(theta):
        return (AROUND[name](theta.sin() + 0.5) ** 2).sum().exp()

    found = value_and_slope(torch.compile(fn, backend="aot_eager"))
    torch.testing.assert_close(found, value_and_slope(fn))


@pytest.mark.parametrize("name", ["custom_root", "unroll, checkpoint", "solve_cg"])
def test_differentiated_inside_what_is_compiled(name):
    def fn(theta):
        loss = (AROUND[name](theta.sin() + 0.5) ** 2).sum()
        return (theta * torch.autograd.grad(loss, theta)[0].detach()).sum()

    found = value_and_slope(torch.compile(fn, backend="aot_eager"))
    torch.testing.assert_close(found, value_and_slope(fn))


NAMED = {
    "custom_root": "solve ",
    "solve_cg": "LinearSolver.__call__ ",
    "unroll": "unroll ",
    "forward_hypergradient": "forward_hypergradient ",
    "zero_order": "smoothed ",
}


@pytest.mark.parametrize(("name", "what"), NAMED.items())
def test_a_whole_graph_is_refused_by_name(name, what):
    message = f"{what}runs as it is; compile the functions that it calls, and what is around it"
    with pytest.raises(RuntimeError, match=message):
        torch.compile(AROUND[name], backend="eager", fullgraph=True)(START)


def test_more_solvers_than_graphs_are_kept_for():
    def scaled(k):
        return optdiff.custom_root(lambda x, a: x - k * a)(lambda init, a: k * a)

    around = torch.compile(lambda solver, a: solver(None, a.sin()).cos().sum(), backend="eager")
    slopes = [torch.autograd.grad(around(scaled(k), a := first()), a)[0] for k in range(12)]
    torch.testing.assert_close(torch.stack(slopes), torch.zeros(12, 3))


# Second derivatives through what was compiled


def net_of(weight):
    net = nn.Linear(3, 1, bias=False)
    net.weight = nn.Parameter(weight)
    return net


def inner_loss(net, a):
    return (net(A * a) ** 2).mean()


def adapted(a, loss_of, first_order=False):
    net = net_of(torch.full((1, 3), 0.5))
    optimizer = optdiff.MetaSGD(net, lr=0.1, first_order=first_order)
    optimizer.step(loss_of(net, a))
    return inner_loss(net, a)


def adapted_by_higher(a, loss_of):
    net = net_of(torch.full((1, 3), 0.5))
    with optdiff.innerloop_ctx(net, optcore.sgd(lr=0.1)) as (copy, optimizer):
        optimizer.step(loss_of(copy, a))
        return inner_loss(copy, a)


@pytest.mark.parametrize(
    ("loop", "who"),
    [(adapted, "MetaSGD.step"), (adapted_by_higher, "DifferentiableOptimizer.step")],
)
def test_a_loss_without_a_second_derivative_is_refused(loop, who):
    compiled = torch.compile(inner_loss, backend="aot_eager")
    message = (
        f"{who}: expected a loss with a second derivative, got one computed by torch.compile, "
        "which drops it; compute the loss outside"
    )
    with pytest.raises(RuntimeError, match=message):
        loop(START.clone().requires_grad_(), compiled)


KINDS = [
    ("eager", False),  # keeps the graph of autograd
    ("aot_eager", True),  # needs no second derivative
]


@pytest.mark.parametrize(("backend", "first_order"), KINDS)
def test_a_compiled_loss_that_has_what_is_needed(backend, first_order):
    compiled = torch.compile(inner_loss, backend=backend)
    found = value_and_slope(lambda a: adapted(a, compiled, first_order))
    torch.testing.assert_close(
        found, value_and_slope(lambda a: adapted(a, inner_loss, first_order))
    )
