# SPDX-License-Identifier: Apache-2.0
"""First, second and third derivatives of kernels: finite differences and the torch formula."""

import pytest
import torch

import optcore
import treeops

SHAPES = [(2,), ()]
# name: a chain from its hyperparameters and whether kernels run, the hyperparameters
CHAINS = {
    "descent": (
        lambda fast, lr, weight_decay: optcore.sgd(
            lr, weight_decay=weight_decay, maximize=True, use_accelerated_op=fast
        ),
        {"lr": 0.3, "weight_decay": 0.4},
    ),
    "momentum": (
        lambda fast, lr, momentum, dampening, weight_decay: optcore.sgd(
            lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            use_accelerated_op=fast,
        ),
        {"lr": 0.3, "momentum": 0.8, "dampening": 0.2, "weight_decay": 0.4},
    ),
    "nesterov": (
        lambda fast, lr, momentum: optcore.sgd(
            lr, momentum=momentum, nesterov=True, maximize=True, use_accelerated_op=fast
        ),
        {"lr": 0.3, "momentum": 0.8},
    ),
    "adam": (
        lambda fast, lr, b1, b2, eps, eps_root, weight_decay: optcore.adam(
            lr, (b1, b2), eps, weight_decay, eps_root=eps_root, use_accelerated_op=fast
        ),
        {"lr": 0.3, "b1": 0.6, "b2": 0.7, "eps": 0.2, "eps_root": 1e-2, "weight_decay": 0.4},
    ),
    "adamw": (
        lambda fast, lr, b1, b2, eps, eps_root, weight_decay: optcore.adamw(
            lr,
            (b1, b2),
            eps,
            weight_decay,
            eps_root=eps_root,
            maximize=True,
            use_accelerated_op=fast,
        ),
        {"lr": 0.3, "b1": 0.6, "b2": 0.7, "eps": 0.2, "eps_root": 1e-2, "weight_decay": 0.4},
    ),
    "amsgrad": (
        lambda fast, lr, b1, b2, eps, eps_root, weight_decay: optcore.amsgrad(
            lr, (b1, b2), eps, weight_decay, eps_root=eps_root, use_accelerated_op=fast
        ),
        {"lr": 0.3, "b1": 0.6, "b2": 0.7, "eps": 0.2, "eps_root": 1e-2, "weight_decay": 0.4},
    ),
    "rms": (
        lambda fast, lr, alpha, eps, eps_root: optcore.chain(
            optcore.scale_by_rms(alpha, eps, eps_root=eps_root, use_accelerated_op=fast),
            optcore.scale_by_learning_rate(lr),
        ),
        {"lr": 0.3, "alpha": 0.7, "eps": 0.2, "eps_root": 1e-2},
    ),
    "stddev": (
        lambda fast, lr, alpha, eps, eps_root: optcore.chain(
            optcore.scale_by_stddev(alpha, eps, eps_root=eps_root, use_accelerated_op=fast),
            optcore.scale_by_learning_rate(lr),
        ),
        {"lr": 0.3, "alpha": 0.7, "eps": 0.2, "eps_root": 1e-2},
    ),
    "rmsprop-momentum": (
        lambda fast, lr, alpha, eps, momentum, weight_decay: optcore.rmsprop(
            lr, alpha, eps, weight_decay, momentum, use_accelerated_op=fast
        ),
        {"lr": 0.3, "alpha": 0.7, "eps": 0.2, "momentum": 0.6, "weight_decay": 0.4},
    ),
    "rmsprop-centered-nesterov": (
        lambda fast, lr, alpha, eps, momentum: optcore.rmsprop(
            lr, alpha, eps, 0.0, momentum, True, nesterov=True, use_accelerated_op=fast
        ),
        {"lr": 0.3, "alpha": 0.7, "eps": 0.2, "momentum": 0.6},
    ),
    "adagrad": (
        lambda fast, lr, lr_decay, eps, weight_decay: optcore.adagrad(
            lr, lr_decay, weight_decay, eps=eps, use_accelerated_op=fast
        ),
        {"lr": 0.3, "lr_decay": 0.1, "eps": 0.2, "weight_decay": 0.4},
    ),
    "lion": (
        lambda fast, lr, b1, b2, weight_decay: optcore.lion(
            lr, (b1, b2), weight_decay, use_accelerated_op=fast
        ),
        {"lr": 0.3, "b1": 0.6, "b2": 0.7, "weight_decay": 0.4},
    ),
}
ROOTED = [name for name, (_, numbers) in CHAINS.items() if "eps_root" in numbers]
SMOOTH = [name for name in CHAINS if name != "lion"]


class Step:
    """A whole step, or the updates alone, as a function of a flat list of tensors.

    Args:
        name: Of the chain.
        whole: Whether new parameters are wanted, not updates.
        numbers: Hyperparameters that differ from the table.
        fast: Whether kernels run.
        device: Where the tensors are.
    """

    def __init__(self, name, whole=True, numbers=None, fast=True, device="cpu"):
        self.make, own = CHAINS[name]
        self.whole, self.fast, self.device = whole, fast, device
        self.numbers = {**own, **(numbers or {})}
        params = [torch.zeros(shape, device=device) for shape in SHAPES]
        tx = self.make(fast, **{k: torch.tensor(float(v)) for k, v in self.numbers.items()})
        leaves, self.spec = treeops.tree_flatten(tx.init(params), namespace="optcore")
        self.buffers = [leaf for leaf in leaves if leaf.is_floating_point()]
        count = torch.tensor(2)
        self.kept = [None if leaf.is_floating_point() else count for leaf in leaves]

    def point(self, gradients=1.0, moments=1.0, seed=0):
        """Parameters, gradients, buffers and hyperparameters, to be differentiated."""
        generator = torch.Generator().manual_seed(seed)

        def draw(shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(self.device)

        params = [draw(shape) for shape in SHAPES]
        grads = [gradients * draw(shape) for shape in SHAPES]
        buffers = [moments * (draw(b.shape).abs() + 1.5) for b in self.buffers]
        numbers = [torch.tensor(float(v), device=self.device) for v in self.numbers.values()]
        tensors = (*params, *grads, *buffers, *numbers)
        return tuple(tensor.double().requires_grad_() for tensor in tensors)

    def __call__(self, *tensors):
        n = len(SHAPES)
        params, grads, rest = list(tensors[:n]), list(tensors[n : 2 * n]), tensors[2 * n :]
        buffers, numbers = iter(rest[: len(self.buffers)]), rest[len(self.buffers) :]
        tx = self.make(self.fast, **dict(zip(self.numbers, numbers, strict=True)))
        leaves = [next(buffers) if kept is None else kept for kept in self.kept]
        state = treeops.tree_unflatten(self.spec, leaves)
        take = tx.step if self.whole else tx.update
        first, after = take(grads, state, params, inplace=False)
        after = treeops.tree_flatten(after, namespace="optcore")[0]
        return (*first, *(leaf for leaf in after if leaf.is_floating_point()))


def second(run, point):
    """A scalar of first derivatives in everything, with a graph."""
    total = sum((out.sin() * (k + 1)).sum() for k, out in enumerate(run(*point)))
    grads = torch.autograd.grad(total, point, create_graph=True, materialize_grads=True)
    return sum((grad.cos() * (k + 1)).sum() for k, grad in enumerate(grads)), grads


@pytest.mark.parametrize("whole", [True, False], ids=["step", "update"])
@pytest.mark.parametrize("name", CHAINS)
def test_everything_against_finite_differences(name, whole, device):
    run = Step(name, whole, device=device)
    assert torch.autograd.gradcheck(run, run.point())
    assert torch.autograd.gradgradcheck(run, run.point())


@pytest.mark.parametrize("eps_root", [0.0, 1e-8, 1e-2])
@pytest.mark.parametrize("name", ROOTED)
def test_roots_of_every_size(name, eps_root, device):
    run = Step(name, numbers={"eps_root": eps_root}, device=device)
    point, fixed = run.point()[: -len(run.numbers)], run.point()[-len(run.numbers) :]
    fixed = [number.detach() for number in fixed]  # eps_root itself stands at its lower end

    def free(*tensors):
        return run(*tensors, *fixed)

    assert torch.autograd.gradcheck(free, point)
    assert torch.autograd.gradgradcheck(free, point)


@pytest.mark.parametrize("zero", [{"gradients": 0.0}, {"moments": 0.0}], ids=str)
@pytest.mark.parametrize("name", SMOOTH)
def test_zeros(name, zero, device):
    run = Step(name, device=device)
    assert torch.autograd.gradcheck(run, run.point(**zero))
    assert torch.autograd.gradgradcheck(run, run.point(**zero))


@pytest.mark.parametrize("name", SMOOTH)
def test_all_zero_has_the_limit_as_derivative(name, device):
    numbers = {"eps_root": 0.0, "weight_decay": 0.0}
    numbers = {key: value for key, value in numbers.items() if key in CHAINS[name][1]}
    run = Step(name, numbers=numbers, device=device)
    point = run.point(gradients=0.0, moments=0.0)
    grads, rest = point[2:4], [tensor.detach() for tensor in point[4:]]

    def of_gradients(*grads):
        return run(*(p.detach() for p in point[:2]), *grads, *rest)

    assert torch.autograd.gradcheck(of_gradients, grads)
    assert all(g.isfinite().all() for g in second(run, point)[1])
    assert all(g.isfinite().all() for g in torch.autograd.grad(second(run, point)[0], point))


def test_ties_of_amsgrad(device):
    """Numbers without rounding errors: the maximum so far and the new moment are the same."""
    found = []
    for fast in (True, False):
        run = Step("amsgrad", True, {"weight_decay": 0.0, "b2": 0.5}, fast, device)
        fields = [tensor.detach() for tensor in run.point()]
        for grad, nu, maximum in zip(fields[2:4], fields[6:8], fields[8:10], strict=True):
            grad.fill_(0.5)
            nu.fill_(1.5)
            maximum.fill_(0.875)
        fields = [tensor.requires_grad_() for tensor in fields]
        assert torch.autograd.gradcheck(run, fields)
        scalar, first = second(run, fields)
        found.append((*run(*fields), *first, *torch.autograd.grad(scalar, fields)))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("whole", [True, False], ids=["step", "update"])
@pytest.mark.parametrize("name", CHAINS)
def test_three_derivatives_equal_those_of_the_formula(name, whole, device):
    found = []
    for fast in (True, False):
        run = Step(name, whole, fast=fast, device=device)
        point = run.point(seed=1)
        scalar, first = second(run, point)
        twice = torch.autograd.grad(scalar, point, create_graph=True, materialize_grads=True)
        total = sum(x.sin().sum() for x in twice)
        thrice = torch.autograd.grad(total, point, materialize_grads=True)
        found.append((*run(*point), *first, *twice, *thrice))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", ["adam", "rmsprop-momentum", "adagrad"])
def test_the_third_derivative_against_finite_differences(name, device):
    run = Step(name, device=device)
    assert torch.autograd.gradgradcheck(
        lambda *x: second(run, x)[1], run.point(), raise_exception=True, fast_mode=True
    )


@pytest.mark.parametrize("name", CHAINS)
def test_forward_mode_against_finite_differences(name, device):
    run = Step(name, device=device)
    assert torch.autograd.gradcheck(
        run, run.point(), check_forward_ad=True, check_backward_ad=False
    )
    assert torch.autograd.gradgradcheck(run, run.point(), check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("name", CHAINS)
def test_in_place_equals_out_of_place(name, device):
    """Bit for bit: both are the same kernel."""
    run = Step(name, device=device)
    with torch.no_grad():
        point = [tensor.detach() for tensor in run.point()]
        out = run(*point)
        tx = run.make(True, **run.numbers)
        params = [p.clone() for p in point[:2]]
        buffers = iter([b.clone() for b in point[4 : 4 + len(run.buffers)]])
        leaves = [next(buffers) if kept is None else kept for kept in run.kept]
        state = treeops.tree_unflatten(run.spec, leaves)
        moved, after = tx.step(list(point[2:4]), state, params, inplace=True)
    after = treeops.tree_flatten(after, namespace="optcore")[0]
    assert all(a is b for a, b in zip(moved, params, strict=True))
    for a, b in zip((*moved, *(x for x in after if x.is_floating_point())), out, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("name", CHAINS)
def test_a_step_equals_update_and_apply_updates(name, device):
    whole, links = (Step(name, way, device=device) for way in (True, False))
    found = []
    for run in (whole, links):
        point = run.point()

        def taken(*x, run=run):
            first, rest = run(*x)[:2], run(*x)[2:]
            if not run.whole:
                first = optcore.apply_updates(list(x[:2]), list(first), inplace=False)
            return (*first, *rest)

        scalar, grads = second(taken, point)
        found.append((*taken(*point), *grads, *torch.autograd.grad(scalar, point)))
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-12)
