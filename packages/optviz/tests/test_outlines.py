# SPDX-License-Identifier: Apache-2.0
"""Small graphs as text, whole: what is in them, where it belongs, what reads what."""

import pytest
import torch

import optviz


def leaf(*shape):
    return torch.ones(shape, requires_grad=True)


def plain():
    w = leaf(2)
    return (w * w.exp()).sum(), {"w": w}


def with_create_graph():
    w = leaf(2)
    (g,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    return g.sum(), {"w": w}


def tied():
    w = leaf(2, 2)
    return (w @ w).sum(), [{"enc": w}, {"dec": w}]


def of_view():
    w = leaf(2, 2)
    return w.view(4)[1:3], {"w": w}


def leaf_itself():
    w = leaf()
    return w, {"w": w}


def meta(name, **options):
    optdiff = pytest.importorskip("optdiff")
    torch.manual_seed(0)
    x, phi = torch.randn(4, 2), torch.zeros(4, 1, requires_grad=True)
    net = torch.nn.Linear(2, 1, bias=False)
    names = {"w": net.weight, "phi": phi}
    inner = optviz.instrument(getattr(optdiff, name)(net, lr=0.1, **options))
    for _ in range(2):
        inner.step((phi.sigmoid() * net(x) ** 2).mean())
    return net.weight.sum(), names


def meta_sgd():
    return meta("MetaSGD")


def meta_adam():
    return meta("MetaAdam")


def accelerated_meta_adam():
    pytest.importorskip("optcore_accel")
    return meta("MetaAdam", use_accelerated_op=True)


def custom_root():
    optdiff = pytest.importorskip("optdiff")
    theta = torch.tensor([4.0, 9.0], requires_grad=True)

    def objective(x, theta):
        return ((x - theta) ** 2).sum() / 2

    @optdiff.custom_root(torch.func.grad(objective))
    def solve(init, theta):
        return optdiff.minimize.newton(objective, torch.zeros(2), theta).solution

    return solve(None, theta).sum(), {"theta": theta}


def zero_order():
    optdiff = pytest.importorskip("optdiff")
    theta = torch.tensor([4.0, 9.0], requires_grad=True)
    normal = torch.distributions.Normal(0.0, 1.0)

    @optdiff.zero_order(normal, method="antithetic", num_samples=3)
    def value(theta):
        return (theta**2).sum()

    return value(theta.exp()), {"theta": theta}


OUTLINES = {
    plain: """\
3 ops, 1 leaf, 1 output, 5 edges, 16 B saved
w (2)
Exp <- w
Mul <- w, Exp
Sum <- Mul
output () <- Sum
""",
    with_create_graph: """\
4 ops, 1 leaf, 1 output, 5 edges, 8 B saved
w (2)
Pow <- w
Mul <- Pow
Mul#2 <- Mul
Sum <- Mul#2
output () <- Sum
""",
    tied: """\
2 ops, 1 leaf, 1 output, 4 edges, 0 B saved
enc, dec (2, 2)
Mm <- enc, dec
Sum <- Mm
output () <- Sum
""",
    of_view: """\
2 ops, 1 leaf, 1 output, 3 edges, 0 B saved
w (2, 2)
View <- w
Slice <- View
output (2) <- Slice
""",
    leaf_itself: """\
0 ops, 1 leaf, 1 output, 1 edge, 0 B saved
w ()
output () <- w
""",
    meta_sgd: """\
27 ops, 2 leaves, 1 output, 32 edges, 400 B saved
w (1, 2)
phi (4, 1)
step 1
  forward
    Sigmoid <- phi
    T <- w
    Mm <- T
  gradient (first derivative)
    Mul (first derivative) <- Sigmoid
    Pow (first derivative) <- Mm
    Mul#2 (first derivative) <- Pow
    Mul#3 (first derivative) <- Mul, Mul#2
    T#2 (first derivative) <- Mul#3
    Mm#2 (first derivative) <- T#2
    T#3 (first derivative) <- Mm#2
    T#4 (first derivative) <- T#3
  scale_by_learning_rate
    Mul#4 <- T#4
  apply
    Add <- w, Mul#4
step 2
  forward
    Sigmoid#2 <- phi
    T#5 <- Add
    Mm#3 <- T#5
  gradient (first derivative)
    Mul#5 (first derivative) <- Sigmoid#2
    Pow#2 (first derivative) <- Mm#3
    Mul#6 (first derivative) <- Pow#2
    Mul#7 (first derivative) <- Mul#5, Mul#6
    T#6 (first derivative) <- Mul#7
    Mm#4 (first derivative) <- T#6
    T#7 (first derivative) <- Mm#4
    T#8 (first derivative) <- T#7
  scale_by_learning_rate
    Mul#8 <- T#8
  apply
    Add#2 <- Add, Mul#8
Sum <- Add#2
output () <- Sum
""",
    meta_adam: """\
40 ops, 2 leaves, 1 output, 51 edges, 568 B saved
w (1, 2)
phi (4, 1)
step 1
  forward (3 ops; 96 B saved) <- phi, w
  gradient (8 ops; 128 B saved; first derivative) <- forward
  scale_by_adam (6 ops; 80 B saved) <- gradient
  scale_by_learning_rate (1 op; 8 B saved) <- scale_by_adam
  apply (1 op) <- w, scale_by_learning_rate
step 2
  forward#2 (3 ops; 32 B saved) <- phi, apply
  gradient#2 (8 ops; 128 B saved; first derivative) <- forward#2
  scale_by_adam#2 (7 ops; 88 B saved) <- scale_by_adam, gradient#2
  scale_by_learning_rate#2 (1 op; 8 B saved) <- scale_by_adam#2
  apply#2 (1 op) <- apply, scale_by_learning_rate#2
Sum <- apply#2
output () <- Sum
""",
    accelerated_meta_adam: """\
25 ops, 2 leaves, 1 output, 32 edges, 480 B saved
w (1, 2)
phi (4, 1)
step 1
  forward
    Sigmoid <- phi
    T <- w
    Mm <- T
  gradient (first derivative)
    Mul (first derivative) <- Sigmoid
    Pow (first derivative) <- Mm
    Mul#2 (first derivative) <- Pow
    Mul#3 (first derivative) <- Mul, Mul#2
    T#2 (first derivative) <- Mul#3
    Mm#2 (first derivative) <- T#2
    T#3 (first derivative) <- Mm#2
    T#4 (first derivative) <- T#3
  fused step (adam; tensors 1; buffers 2; 3 tensors saved) \
<- w, T#4
step 2
  forward
    Sigmoid#2 <- phi
    T#5 <- fused step
    Mm#3 <- T#5
  gradient (first derivative)
    Mul#4 (first derivative) <- Sigmoid#2
    Pow#2 (first derivative) <- Mm#3
    Mul#5 (first derivative) <- Pow#2
    Mul#6 (first derivative) <- Mul#4, Mul#5
    T#6 (first derivative) <- Mul#6
    Mm#4 (first derivative) <- T#6
    T#7 (first derivative) <- Mm#4
    T#8 (first derivative) <- T#7
  fused step#2 (adam; tensors 1; buffers 2; 3 tensors saved) \
<- fused step, T#8
Sum <- fused step#2
output () <- Sum
""",
    custom_root: """\
2 ops, 1 leaf, 1 output, 3 edges, 16 B saved
theta (2)
Implicit (custom_root; linear solver gmres; minimize.newton: 1 iteration; residual 0; \
cg: 1 iteration; residual 0; 2 tensors saved) <- theta
Sum <- Implicit
output () <- Sum
""",
    zero_order: """\
2 ops, 1 leaf, 1 output, 3 edges, 32 B saved
theta (2)
Exp <- theta
ZeroOrder (zero_order; method antithetic; samples 3; evaluations 7; 1 tensor saved) <- Exp
output () <- ZeroOrder
""",
}


@pytest.mark.parametrize("program", OUTLINES, ids=lambda program: program.__name__)
def test_outline(program):
    assert optviz.draw(*program()).to_txt() == OUTLINES[program]


def test_a_backward_pass_adds_to_the_statistics_of_a_solve():
    loss, names = custom_root()
    graph = optviz.draw(loss, names)
    assert "backward" not in graph.to_txt()
    text = optviz.flow(graph, loss).to_txt()
    assert "backward gmres: 1 iteration; residual" in text
    assert "backward gmres: iterations = 1" in optviz.draw(loss).to_html()


class Estimate(torch.autograd.Function):
    """Tells what any Function may tell."""

    @staticmethod
    def forward(ctx, x, statistics):
        ctx.statistics = statistics
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 2 * g, None


@pytest.mark.parametrize(
    ("statistics", "told"),
    [
        ({"by": "me", "draws": 3}, "(me; draws 3)"),
        ({"step": torch.tensor(0.25)}, "(step 0.25)"),
        ({"all": torch.ones(2)}, "(all float32[2])"),
        ({"cg: iterations": 4, "cg: solves": 2}, "(cg: 4 iterations in 2 solves)"),
        ({"cg: residual": 0.5, "cg: converged": False}, "(cg: residual 0.5, NOT CONVERGED)"),
        ({"cg: restarts": 2}, "(cg: restarts 2)"),
        ("text", "Estimate <-"),
    ],
)
def test_any_function_may_tell_of_its_work(statistics, told):
    y = Estimate.apply(leaf(2), statistics)
    assert told in optviz.draw(y).to_txt()
