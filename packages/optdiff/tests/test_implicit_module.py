# SPDX-License-Identifier: Apache-2.0
"""Modules that solve an inner problem: derivatives, what solve leaves behind, what is refused."""

import copy
import gc
import io
import pickle
import re
import weakref

import pytest
import torch
from torch import nn

import optdiff
from optdiff import testing
from optdiff.linear_solve import solve_cg, solve_lu, solve_normal_cg
from optdiff.nn import ImplicitMetaGradientModule

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

QUADRATIC = testing.quadratic_bilevel()
X = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
Y = torch.linspace(0, 1, 5, dtype=torch.float64).reshape(5, 1) ** 2


class ByObjective(ImplicitMetaGradientModule):
    """The constructor of the README's listing: no super().__init__()."""

    def __init__(self, theta, alpha):
        self.theta = theta
        self.alpha = alpha
        self.x = nn.Parameter(torch.zeros(4))

    def objective(self, scale=1.0):
        return QUADRATIC.objective(self.x, self.theta * scale, self.alpha)

    def solve(self, scale=1.0):
        with torch.no_grad():
            self.x.copy_(QUADRATIC.solution(self.theta * scale, self.alpha))
        return self


class ByAutograd(ByObjective, linear_solve=solve_normal_cg()):
    def optimality(self, scale=1.0):
        return torch.autograd.grad(self.objective(scale), self.parameters(), create_graph=True)


class ByTensor(ByObjective, linear_solve=solve_cg(maxiter=10)):
    def optimality(self, scale=1.0):
        return QUADRATIC.optimality(self.x, self.theta * scale, self.alpha)


class ByName(ByObjective, linear_solve=solve_lu()):
    def optimality(self, scale=1.0):
        return {"x": QUADRATIC.optimality(self.x, self.theta * scale, self.alpha)}


class ByGradientDescent(ByObjective):
    """An optimizer made once, as in the docstring of TorchOpt."""

    def __init__(self, theta, alpha):
        super().__init__(theta, alpha)
        self.optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=100, tolerance_grad=1e-11, tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

    def solve(self, scale=1.0):
        def closure():
            self.optimizer.zero_grad()
            loss = self.objective(scale)
            loss.backward()
            return loss

        self.optimizer.step(closure)
        return self


KINDS = [ByObjective, ByAutograd, ByTensor, ByName, ByGradientDescent]


def metas():
    return tuple(arg.clone().requires_grad_() for arg in QUADRATIC.args)


@pytest.mark.parametrize("kind", KINDS)
def test_hypergradients(kind):
    given = metas()
    module = kind(*given)
    assert module.solve() is module
    found = torch.autograd.grad(QUADRATIC.outer(module.x), given)
    torch.testing.assert_close(found, QUADRATIC.hypergradient(*QUADRATIC.args))
    assert given[0].grad is None  # loss.backward() in solve does not reach it


@pytest.mark.parametrize("transform", ["reverse", "forward", "reverse_reverse", "forward_reverse"])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_transforms(kind, transform):
    given = metas()

    def outer(theta, alpha):
        module = kind(*given)
        with_these(module, theta, alpha)
        return QUADRATIC.outer(module.solve().x)

    def with_these(module, theta, alpha):
        module.register_meta_parameter("theta", theta)
        module.register_meta_parameter("alpha", alpha)

    def expected(theta, alpha):
        return QUADRATIC.outer(QUADRATIC.solution(theta, alpha))

    testing.assert_equal_under(transform, outer, expected, QUADRATIC.args, 1e-7)


def test_second_order_by_autograd():
    given = metas()
    (grad, _) = torch.autograd.grad(
        QUADRATIC.outer(ByObjective(*given).solve().x), given, create_graph=True
    )
    found = torch.autograd.grad(grad.square().sum(), given)
    true = metas()
    (grad, _) = torch.autograd.grad(
        QUADRATIC.outer(QUADRATIC.solution(*true)), true, create_graph=True
    )
    torch.testing.assert_close(found, torch.autograd.grad(grad.square().sum(), true))


def test_arguments_get_their_gradient():
    given = metas()
    scale = torch.tensor(2.0, requires_grad=True)
    found = torch.autograd.grad(QUADRATIC.outer(ByObjective(*given).solve(scale=scale).x), scale)
    expected = torch.autograd.grad(
        QUADRATIC.outer(QUADRATIC.solution(given[0] * scale, given[1])), scale
    )
    torch.testing.assert_close(found, expected)


class Proximal(ImplicitMetaGradientModule, linear_solve=solve_cg(rtol=1e-12, maxiter=500)):
    """iMAML: a network held close to a meta-network; with what modules have besides parameters."""

    def __init__(self, meta_net):
        super().__init__()
        self.meta_net = meta_net
        self.net = copy.deepcopy(meta_net)
        self.net[2].bias.requires_grad_(False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.net(x)

    def objective(self, x, y):
        near = sum((p - q).square().sum() for p, q in self.pairs())
        return (self(x) - y).square().mean() + near

    def pairs(self):
        return zip(self.net.parameters(), self.meta_parameters(), strict=True)

    def solve(self, x, y):
        wanted = [p for p in self.parameters() if p.requires_grad]
        optimizer = torch.optim.LBFGS(
            wanted, max_iter=200, tolerance_grad=1e-13, tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

        def closure():
            optimizer.zero_grad()
            loss = self.objective(x, y)
            loss.backward()
            return loss

        optimizer.step(closure)
        return wanted[0], self.objective(x, y), "done"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def outer_of(meta_net):
    module = Proximal(meta_net)
    module.solve(X, Y)
    return (module.eval()(X) - 0.3).square().mean()


def test_a_meta_module_in_eval_mode_with_buffers_and_frozen_parameters():
    """Its gradient is the difference of whole solves."""
    meta_net = network().eval()
    found = torch.autograd.grad(outer_of(meta_net), meta_net[0].weight)[0]
    directed = []
    for step in (1e-3, -1e-3):
        moved = network().eval()
        with torch.no_grad():
            moved[0].weight += step * torch.ones(2, 3)
        directed.append(outer_of(moved))
    slope = (directed[0] - directed[1]) / 2e-3
    torch.testing.assert_close(found.sum(), slope, rtol=2e-5, atol=0)


def test_the_listing_of_the_slides():
    """A meta-module, an optimality instead of an objective, a network as its own part."""

    class Module(ImplicitMetaGradientModule):
        def __init__(self, meta_module):
            super().__init__()
            self.meta_module = meta_module
            self.head = nn.Linear(2, 1, bias=False)

        def forward(self, x):
            return self.head(self.meta_module(x))

        def optimality(self, batch, labels):
            features = self.meta_module(batch)
            return (features.T @ (self(batch) - labels)).T + self.head.weight

        def solve(self, batch, labels):
            features = self.meta_module(batch)
            gram = features.T @ features + torch.eye(2)
            with torch.no_grad():
                self.head.weight.copy_(torch.linalg.solve(gram, features.T @ labels).T)
            return self

    meta_module = nn.Linear(3, 2)
    optimal = Module(meta_module).solve(X, Y)
    found = torch.autograd.grad(optimal(X).square().sum(), [*meta_module.parameters()])
    features = meta_module(X)
    head = torch.linalg.solve(features.T @ features + torch.eye(2), features.T @ Y)
    expected = torch.autograd.grad((features @ head).square().sum(), [*meta_module.parameters()])
    torch.testing.assert_close(found, expected)


def test_buffers_are_those_that_solve_left():
    module = Proximal(network())
    weight, value, word = module.solve(X, Y)
    left = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.eval()  # the optimality stays in the mode of the solve
    torch.autograd.grad(weight.sum(), [*module.meta_parameters()], allow_unused=True)
    torch.testing.assert_close(dict(module.named_buffers()), left)
    assert module.calls == left["calls"] > 1
    assert weight is module.net[0].weight
    assert not value.requires_grad
    assert word == "done"


def test_solving_again_goes_on_with_the_same_leaves():
    module = ByGradientDescent(*metas())
    leaf = module.x
    first = module.solve().x
    assert leaf.is_leaf
    assert first.grad_fn is not None
    calls = module.optimizer.state[leaf]["func_evals"]
    second = module.solve().x
    assert module.optimizer.state[leaf]["func_evals"] <= calls + 2  # it starts there
    torch.testing.assert_close(second, first)
    torch.autograd.grad(QUADRATIC.outer(first) + QUADRATIC.outer(second), module.theta)


def test_what_is_loaded_is_where_the_next_solve_starts():
    class Keeps(ByObjective):
        def solve(self):
            self.seen = self.x.detach().clone()
            return super().solve()

    module = Keeps(*metas()).solve()
    module.load_state_dict({"x": torch.full((4,), 7.0)})
    assert (module.solve().seen == 7).all()
    assert module.x.grad_fn is not None


def test_without_a_derivative_the_parameters_stay_parameters():
    module = ByObjective(*metas())
    leaf = module.x
    with torch.no_grad():
        module.solve()
    assert module.x is leaf
    torch.testing.assert_close(leaf.detach(), QUADRATIC.solution(*QUADRATIC.args))
    torch.testing.assert_close(module.optimality()[0], torch.zeros(4), rtol=0, atol=1e-12)


def test_copies_and_state():
    module = ByObjective(*metas()).solve()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.x.is_leaf
        torch.testing.assert_close(twin.solve().x, module.x)
        assert twin.x.grad_fn is not None
    file = io.BytesIO()
    torch.save(module.state_dict(meta=True), file)
    file.seek(0)
    other = ByObjective(*(torch.zeros_like(arg).requires_grad_() for arg in QUADRATIC.args))
    other.load_state_dict(torch.load(file), meta=True)
    torch.testing.assert_close(other.solve().x, module.x)


class Learns(ImplicitMetaGradientModule):
    def __init__(self, decay):
        super().__init__()
        self.decay = decay
        self.w = nn.Parameter(torch.zeros(()))

    def objective(self, target):
        return (self.w - target) ** 2 + self.decay * self.w**2


class Solves:
    def solve(self, target):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
        for _ in range(200):
            optimizer.zero_grad()
            self.objective(target).backward()
            optimizer.step()
        return self


class Inherits(Solves, Learns):
    pass


class Further(Inherits):
    pass


@pytest.mark.parametrize("kind", [Inherits, Further])
def test_solve_of_a_mixin(kind):
    decay = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    solved = kind(decay).solve(torch.tensor(3.0))  # w = 3 / (1 + decay)
    torch.testing.assert_close(torch.autograd.grad(solved.w, decay)[0], torch.tensor(-0.75))
    assert decay.grad is None


def test_meta_parameters_of_a_meta_module():
    class Rate(optdiff.nn.MetaGradientModule):
        def __init__(self, log):
            self.log = log

        def forward(self):
            return self.log.exp()

    class Nested(Inherits):
        def objective(self, target):
            return (self.w - target) ** 2 + self.decay() * self.w**2

    log = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solved = Nested(Rate(log)).solve(torch.tensor(3.0))
    torch.testing.assert_close(torch.autograd.grad(solved.w, log)[0], torch.tensor(-0.75))


def test_a_computed_meta_parameter_is_copied_detached():
    module = ByObjective(metas()[0] * 2, metas()[1]).solve()
    twin = copy.deepcopy(module)
    assert twin.theta.is_leaf
    torch.testing.assert_close(twin.solve().x, module.x)


def test_a_list_of_the_module_that_gets_the_graph_is_freed():
    def losses():
        module = Inherits(torch.ones((), requires_grad=True))
        module.losses = []
        module.losses.append(module.solve(torch.tensor(3.0)).w * 2)
        return weakref.ref(module), weakref.ref(module.losses[0])

    losses()  # torch keeps frames of its first gradient
    module, loss = losses()
    gc.collect()
    assert (module(), loss()) == (None, None)


def test_it_is_freed_with_its_last_reference():
    given = metas()
    ByObjective(*given).solve()  # torch imports something at its first gradient, and keeps frames
    module = ByObjective(*given).solve()
    alive = weakref.ref(module)
    del module
    assert alive() is None  # no garbage collection needed


def test_a_failed_solve_leaves_the_meta_parameters():
    class Fails(ByObjective):
        def solve(self):
            raise ZeroDivisionError

    given = metas()
    module = Fails(*given)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            module.solve()
        assert module.theta is given[0]


def neither():
    class Wrong(ImplicitMetaGradientModule):
        def solve(self):
            return self


def static():
    class Wrong(ByObjective):
        @staticmethod
        def objective():
            return torch.zeros(())


def no_solver():
    class Wrong(ByObjective, linear_solve=3):
        pass


def no_solve():
    class Wrong(ImplicitMetaGradientModule):
        def objective(self):
            return torch.zeros(())

    Wrong()


def no_parameters():
    module = ByObjective(*metas())
    module.x.requires_grad_(False)
    module.solve()


def closed_over():
    outside = torch.ones(4, requires_grad=True)

    class Wrong(ByObjective):
        def objective(self):
            return super().objective() + outside @ self.x

    Wrong(*metas()).solve()


def returning(value):
    class Wrong(ByObjective):
        def optimality(self):
            return value(self)

    return lambda: Wrong(*metas()).solve()


def no_scalar():
    class Wrong(ByObjective):
        def objective(self):
            return self.x

    Wrong(*metas()).solve()


def mapped():
    module = ByObjective(*metas())
    torch.vmap(lambda scale: module.solve(scale).x)(torch.ones(2))


def by_call():
    module = ByObjective(*metas())
    module.forward = module.solve
    torch.vmap(lambda x: torch.func.functional_call(module, {"x": x}, ()))(torch.ones(2, 4))


def on_an_instance():
    ByObjective(*metas()).objective = lambda: torch.zeros(())


REFUSED = [
    (
        on_an_instance,
        TypeError,
        "ByObjective.assignment: expected objective to be written in a class, got function for an "
        "instance, at 'objective'; write a subclass of ByObjective",
    ),
    (neither, TypeError, "Wrong: expected a method optimality or objective, got neither"),
    (
        static,
        TypeError,
        "Wrong: expected objective to be a method, got staticmethod; write def obj",
    ),
    (no_solver, TypeError, "Wrong: expected solve to be a linear solver such as optdiff.linear_so"),
    (no_solve, TypeError, "Wrong: expected a class with a method solve, got none"),
    (no_parameters, ValueError, "ByObjective.solve: expected a parameter that requires grad, got"),
    (
        closed_over,
        ValueError,
        "Wrong.solve: expected an optimality that gets every tensor that req",
    ),
    (
        returning(lambda self: {"y": self.x}),
        ValueError,
        "Wrong.solve: expected the optimality to have the keys ['x'], got ['y']",
    ),
    (
        returning(lambda self: 3),
        TypeError,
        "Wrong.solve: expected the optimality to be a tensor for each of ['x'], got int",
    ),
    (
        returning(lambda self: (self.x[:2],)),
        ValueError,
        "Wrong.solve: expected the optimality to have the shape [4], got f64[2]",
    ),
    (no_scalar, ValueError, "Wrong.objective: expected a scalar, got f64[4]"),
    (mapped, RuntimeError, "ByObjective.solve: expected no vmap around it, got one; a module hol"),
    (by_call, RuntimeError, "ByObjective.solve: expected no vmap around its parameters"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_refused(call, error, message):
    with pytest.raises(error, match="^" + re.escape(message)):
        call()


def test_it_is_at_the_name_of_torchopt():
    assert optdiff.nn.ImplicitMetaGradientModule is ImplicitMetaGradientModule
