# SPDX-License-Identifier: Apache-2.0
"""unroll of a step that is compiled once, against the same step as it is."""

import pytest
import torch
from torch import nn

import optcore
import optdiff

STEPS = 10
# torch's own: of copying a leaf's .grad while tracing, and Inductor's
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        torch.__version__ < "2.12", reason="torch.compile follows trees from torch 2.12 on"
    ),
]


class Problem:
    """A small MLP in float64; the meta-parameter scales its inputs."""

    def __init__(self, wrap=lambda transformation: transformation):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        self.x, self.y = torch.randn(5, 3).double(), torch.randn(5, 2).double()
        self.phi = torch.ones(3, dtype=torch.float64, requires_grad=True)
        self.opt = wrap(optcore.adam(1e-2, eps=1e-3, moment_requires_grad=True))

    def loss(self, params, phi):
        out = torch.func.functional_call(self.net, params, (self.x * phi,))
        return (out - self.y).square().mean()

    def step(self, carry, i, phi):
        params, state = carry
        grads = torch.func.grad(self.loss)(params, phi)
        updates, state = self.opt.update(grads, state, params)
        return optcore.apply_updates(params, updates), state

    def gradient(self, step, create_graph=False, **options):
        params = {name: p.clone() for name, p in self.net.named_parameters()}
        start = params, self.opt.init(params)
        params, _ = optdiff.unroll(step, start, STEPS, self.phi, **options)
        at = (*self.net.parameters(), self.phi)
        return torch.autograd.grad(self.loss(params, 1), at, create_graph=create_graph)


@pytest.fixture(autouse=True)
def _no_compiled_code_left():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled_once(wrap, backend):
    problem = Problem(wrap)
    step = torch.compile(problem.step, fullgraph=True, backend=backend)
    params = {name: p.clone() for name, p in problem.net.named_parameters()}
    step((params, problem.opt.init(params)), 0, problem.phi)
    with torch.compiler.set_stance("fail_on_recompile"):
        found = problem.gradient(step)
    torch.testing.assert_close(found, problem.gradient(problem.step), rtol=1e-10, atol=1e-14)


def test_one_compilation_serves_all_steps():
    compiled_once(lambda transformation: transformation, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [lambda transformation: transformation, optcore.flatten])
def test_inductor(wrap):
    compiled_once(wrap, "inductor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"first_order": True},
            r"unroll\(first_order=True\): expected a step that is not compiled; detach the "
            "gradients inside it instead",
        ),
        (
            {"checkpoint": "sqrt"},
            "unroll: expected modules that are not compiled under checkpoint, got Sequential; "
            "leave out checkpoint, or torch.compile",
        ),
    ],
)
def test_what_compiled_code_cannot_do_is_refused(options, message):
    problem = Problem()
    step = torch.compile(problem.step, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=message):
        problem.gradient(step, **options)


def test_second_derivatives_are_refused_by_torch():
    problem = Problem()
    step = torch.compile(problem.step, fullgraph=True, backend="aot_eager")
    first = problem.gradient(step, create_graph=True)[-1]
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(first.sum(), problem.phi)
