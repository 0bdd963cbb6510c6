# SPDX-License-Identifier: Apache-2.0
"""unroll: checkpointed, truncated and first-order loops against the plain loop and definitions."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import optcore
import optdiff

F = torch.func
STEPS = 7
CHECKPOINTS = ["sqrt", 1, 3, STEPS, 100]


def loss(w, phi):
    return (w * phi).sin().square().sum() + (w**4).sum() / 7


def by_autograd(w, i, lr, phi):
    (g,) = torch.autograd.grad(loss(w, phi), w, create_graph=True)
    return w - lr * (1 + i / 10) * g


def by_func(w, i, lr, phi):
    return w - lr * (1 + i / 10) * torch.func.grad(loss)(w, phi)


def inputs():
    torch.manual_seed(1)
    return torch.randn(3), torch.tensor(0.1), torch.randn(3)


def leaves():
    return tuple(t.requires_grad_() for t in inputs())


def objective(step, **options):
    def outer(w, lr, phi):
        return optdiff.unroll(step, w, STEPS, lr, phi, **options).pow(3).sum()

    return outer


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def derivatives(outer):
    """First and second derivatives in all inputs."""
    at = leaves()
    first = torch.autograd.grad(outer(*at), at, create_graph=True)
    mixed = sum((g * torch.linspace(1, 2, g.numel()).view(g.shape)).sum() for g in first)
    return [*first, *torch.autograd.grad(mixed, at)]


@pytest.mark.parametrize("step", [by_autograd, by_func])
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_checkpoints_change_no_derivative(step, checkpoint):
    close(derivatives(objective(step, checkpoint=checkpoint)), derivatives(objective(step)))


def truncated_by_hand(w, lr, phi):
    for i in range(STEPS):
        if i == STEPS - 3:
            w = w.detach().requires_grad_()
        w = by_autograd(w, i, lr, phi) if i >= STEPS - 3 else by_autograd(w, i, lr.detach(), phi)
    return w.pow(3).sum()


@pytest.mark.parametrize("checkpoint", [None, "sqrt", 2])
def test_truncation_is_a_detach_before_the_last_steps(checkpoint):
    w, lr, phi = leaves()
    outer = objective(by_autograd, truncate=3, checkpoint=checkpoint)
    at = (lr, phi)
    found = torch.autograd.grad(outer(w, lr, phi), at, create_graph=True)
    expected = torch.autograd.grad(truncated_by_hand(w, lr, phi), at, create_graph=True)
    close(found, expected)
    close(torch.autograd.grad(found[0], at), torch.autograd.grad(expected[0], at))
    assert torch.autograd.grad(outer(w, lr, phi), w, allow_unused=True)[0] is None


@pytest.mark.parametrize("truncate", [STEPS, STEPS + 5])
def test_truncation_before_the_start_truncates_nothing(truncate):
    found = derivatives(objective(by_autograd, truncate=truncate))
    close(found, derivatives(objective(by_autograd)))


def fomaml_by_hand(w, lr, phi):
    for i in range(STEPS):
        (g,) = torch.autograd.grad(loss(w, phi), w)
        w = w - lr * (1 + i / 10) * g
    return w.pow(3).sum()


@pytest.mark.parametrize("step", [by_autograd, by_func])
@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_first_order_takes_inner_gradients_as_constants(step, checkpoint):
    w, lr, phi = leaves()
    outer = objective(step, first_order=True, checkpoint=checkpoint)
    found = torch.autograd.grad(outer(w, lr, phi), (w, lr, phi), allow_unused=True)
    close(found[:2], torch.autograd.grad(fomaml_by_hand(w, lr, phi), (w, lr)))
    assert found[2] is None or not found[2].any()


def penalized(w):
    return loss(w, 1.3) + torch.func.grad(loss)(w, 0.7).square().sum()


def newton(second):
    return lambda w, i, lr: w - lr * torch.linalg.solve(second(penalized)(w), w)


CURVED = {
    "gradient penalty": lambda w, i, lr: w - lr * F.grad(penalized)(w),
    "jacrev of grad": newton(lambda f: F.jacrev(F.grad(f))),
    "jacrev of jacrev": newton(lambda f: F.jacrev(F.jacrev(f))),
    "jacrev of jacfwd": newton(lambda f: F.jacrev(F.jacfwd(f))),
    "hessian": newton(F.hessian),
    "gradient under vmap": lambda w, i, lr: w - lr * F.vmap(F.grad(penalized))(w[None])[0],
}


@pytest.mark.parametrize("step", CURVED.values(), ids=CURVED.keys())
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_first_order_changes_no_value(step, checkpoint):
    w, lr, _ = leaves()
    options = {"first_order": True, "checkpoint": checkpoint}
    close(optdiff.unroll(step, w, 3, lr, **options), optdiff.unroll(step, w, 3, lr))


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_first_order_takes_gradients_of_gradients_as_constants(checkpoint):
    w, lr, _ = leaves()
    options = {"first_order": True, "checkpoint": checkpoint}
    last = optdiff.unroll(CURVED["gradient penalty"], w, 3, lr, **options)
    expected, sizes = w.detach(), []
    for _ in range(3):
        sizes.append(-F.grad(penalized)(expected))
        expected = expected + lr.detach() * sizes[-1]
    found = torch.autograd.grad(last.sum(), (w, lr))
    close(found, (torch.ones(3), sum(sizes).sum()))


FIRST = {
    "grad": lambda f: F.grad(f, (0, 1))(*inputs()[:2]),
    "jacfwd": lambda f: F.jacfwd(f, (0, 1))(*inputs()[:2]),
    "jacrev": lambda f: F.jacrev(f, (0, 1))(*inputs()[:2]),
    "grad of vmap": lambda f: F.grad(lambda w, lr: F.vmap(f, (0, None))(w[None], lr).sum(), (0, 1))(
        *inputs()[:2]
    ),
    "vmap of grad": lambda f: [
        g[0] for g in F.vmap(F.grad(f, (0, 1)), (0, None))(inputs()[0][None], inputs()[1])
    ],
}


@pytest.mark.parametrize("transform", FIRST.values(), ids=FIRST.keys())
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_first_order_under_transforms(transform, checkpoint):
    def outer(w, lr):
        step = CURVED["gradient penalty"]
        return optdiff.unroll(step, w, 3, lr, first_order=True, checkpoint=checkpoint).sum()

    w, lr, _ = leaves()
    close(tuple(transform(outer)), torch.autograd.grad(outer(w, lr), (w, lr)))


SECOND = {
    "jacrev of jacrev": lambda f: F.jacrev(F.jacrev(f))(inputs()[0]),
    "jacrev of jacfwd": lambda f: F.jacrev(F.jacfwd(f))(inputs()[0]),
    "hessian": lambda f: F.hessian(f)(inputs()[0]),
}


@pytest.mark.parametrize("transform", SECOND.values(), ids=SECOND.keys())
@pytest.mark.parametrize("checkpoint", [None, 2])
def test_second_derivatives_to_first_order(transform, checkpoint):
    """With constant gradients the last carry is the first one moved."""

    def outer(w):
        return (
            optdiff.unroll(by_func, w, 3, 0.1, 1.3, first_order=True, checkpoint=checkpoint)
            .square()
            .sum()
        )

    close(transform(outer), 2 * torch.eye(3))


def test_a_third_derivative_to_first_order():
    w, lr, phi = inputs()

    def third(checkpoint):
        def outer(phi):  # which only the inner gradients depend on
            options = {"first_order": True, "checkpoint": checkpoint}
            return optdiff.unroll(by_func, w, 3, lr, phi, **options).pow(3).sum()

        return F.jacfwd(F.jacrev(F.jacfwd(outer)))(phi)

    assert not third(2).any()
    assert not third(None).any()


def penalty_by_autograd(w, i, lr):
    (g,) = torch.autograd.grad(loss(w, 1.3), w, create_graph=True)
    (total,) = torch.autograd.grad(loss(w, 1.3) + g.square().sum(), w, create_graph=True)
    return w - lr * total


def penalty_inside_func(w, i, lr):
    def inner(w):
        (g,) = torch.autograd.grad(loss(w, 1.3), w, create_graph=True)
        return loss(w, 1.3) + g.square().sum()

    return w - lr * torch.func.grad(inner)(w)


@pytest.mark.parametrize("step", [penalty_by_autograd, penalty_inside_func])
def test_first_order_refuses_gradients_through_gradients_by_autograd(step):
    w, lr, _ = leaves()
    message = (
        "^unroll: expected a step that takes no gradient of a gradient for first_order=True, got "
        "one, at step 0; nest torch.func.grad for it, or set first_order=False"
    )
    with pytest.raises(ValueError, match=message):
        optdiff.unroll(step, w, 3, lr, first_order=True)


MODES = [{}, {"checkpoint": 1}, {"checkpoint": "sqrt"}, {"truncate": 2}, {"first_order": True}]


@pytest.mark.parametrize("step", [by_autograd, by_func])
@pytest.mark.parametrize("options", MODES, ids=str)
def test_a_start_that_is_in_the_args_too(step, options):
    w, lr, _ = leaves()
    at = (lr, w)
    found = optdiff.unroll(step, w, STEPS, lr, w, **options)
    expected = optdiff.unroll(step, w.clone(), STEPS, lr, w, **options)
    close(found, optdiff.unroll(step, w.clone(), STEPS, lr, w))
    close(
        torch.autograd.grad(found.sum(), at, allow_unused=True),
        torch.autograd.grad(expected.sum(), at, allow_unused=True),
    )


@pytest.mark.parametrize("options", MODES, ids=str)
def test_ties_in_the_carry(options):
    def step(carry, i):
        (g,) = torch.autograd.grad(loss(carry["a"], carry["b"]), carry["a"], create_graph=True)
        new = carry["a"] - 0.1 * g
        return {"a": new, "b": new}

    def tied(w, i):
        return step({"a": w, "b": w}, i)["a"]

    w, _, _ = leaves()
    last = optdiff.unroll(step, {"a": w, "b": w}, 4, **options)
    assert last["a"] is last["b"]
    expected = optdiff.unroll(tied, w, 4, **options)
    close(last["a"], expected)
    close(
        torch.autograd.grad(last["b"].sum(), w, allow_unused=True),
        torch.autograd.grad(expected.sum(), w, allow_unused=True),
    )


def adam_loop(**options):
    """K steps of Adam on a network as a function of the initial weights and of phi."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    phi = torch.ones(3, requires_grad=True)
    tx = optcore.adam(lr=0.05, eps=1e-3)
    params = dict(net.named_parameters())

    def call(params, x):
        return torch.func.functional_call(net, params, (x,))

    def step(carry, i, phi):
        params, state = carry
        value = (call(params, x * phi) - y).square().mean()
        grads = torch.autograd.grad(value, tuple(params.values()), create_graph=True)
        updates, state = tx.update(dict(zip(params, grads, strict=True)), state, params)
        return optcore.apply_updates(params, updates), state

    before = {name: p.detach().clone() for name, p in params.items()}
    last, _ = optdiff.unroll(step, (params, tx.init(params)), 5, phi, **options)
    assert all(torch.equal(p, before[name]) for name, p in params.items())
    outer = (call(last, x) - y).square().mean()
    return torch.autograd.grad(outer, [phi, *params.values()], allow_unused=True)


def test_adam_state_in_the_carry():
    close(adam_loop(checkpoint="sqrt"), adam_loop())


def test_first_order_agrees_with_the_meta_class():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, y = torch.randn(6, 3), torch.randn(6, 1)
    start = list(net.parameters())
    meta = optdiff.MetaAdam(net, lr=0.05, eps=1e-3, first_order=True)
    for _ in range(5):
        meta.step((net(x) - y).square().mean())
    expected = torch.autograd.grad((net(x) - y).square().mean(), start)
    for options in ({}, {"checkpoint": 2}):
        close(adam_loop(first_order=True, **options)[1:], expected)


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_outputs_of_every_step(checkpoint):
    w, lr, phi = leaves()

    def step(w, i, lr, phi):
        return by_autograd(w, i, lr, phi), {"loss": loss(w, phi), "none": None}

    options = {"has_aux": True, "truncate": 5, "checkpoint": checkpoint}
    last, outputs = optdiff.unroll(step, w, STEPS, lr, phi, **options)
    expected, values = w, []
    for i in range(STEPS):
        expected = expected if i != STEPS - 5 else expected.detach().requires_grad_()
        values.append(loss(expected, phi if i >= STEPS - 5 else phi.detach()))
        expected = by_autograd(expected, i, lr, phi)
    close((last, outputs["loss"]), (expected, torch.stack(values)))
    assert outputs["none"] is None
    weights = torch.arange(STEPS) + (torch.arange(STEPS) >= STEPS - 5) * 0.5
    late = (torch.arange(STEPS) >= STEPS - 5) * weights
    found = torch.autograd.grad(outputs["loss"] @ weights, (lr, phi))
    close(found, torch.autograd.grad(torch.stack(values) @ late, (lr, phi)))


@pytest.mark.parametrize("checkpoint", [None, "sqrt", 2])
def test_carries_of_other_things_than_tensors(checkpoint):
    w = torch.ones(2, requires_grad=True)

    def step(carry, i, args):
        assert args["name"] == "f"
        assert carry["i"] == i
        return {**carry, "w": carry["w"] * args["c"], "i": i + 1, "n": carry["n"] + 1}

    init = {"w": w, "fixed": w, "i": 0, "none": None, "n": torch.tensor(0)}
    c = torch.tensor(2.0, requires_grad=True)
    end = optdiff.unroll(step, init, 5, {"name": "f", "c": c}, checkpoint=checkpoint)
    assert (end["i"], end["none"], int(end["n"])) == (5, None, 5)
    found = torch.autograd.grad((end["w"] + 3 * end["fixed"]).sum(), (w, c))
    close(found, (torch.full((2,), 35.0), torch.tensor(160.0)))
    assert optdiff.unroll(lambda i, _: i + 1, 0, 3, checkpoint=checkpoint) == 3


@pytest.mark.parametrize("checkpoint", [None, "sqrt"])
def test_no_steps_give_the_start(checkpoint):
    w = torch.ones(2, requires_grad=True)
    assert optdiff.unroll(by_func, w, 0, checkpoint=checkpoint) is w


@pytest.mark.parametrize("options", [{}, {"checkpoint": "sqrt"}, {"checkpoint": 3}], ids=str)
def test_gradcheck_and_gradgradcheck(options):
    outer = objective(by_func, **options)
    assert gradcheck(outer, leaves(), check_forward_ad=True)
    assert gradgradcheck(outer, leaves())


@pytest.mark.parametrize("options", [{}, {"checkpoint": 2}], ids=str)
def test_gradcheck_and_gradgradcheck_of_what_truncation_keeps(options):
    w, lr, phi = inputs()

    def outer(late):  # rates of the last three steps: nothing before depends on them
        rates = torch.cat([lr.expand(STEPS - 3), late])

        def step(w, i, rates):
            return w - rates[i] * torch.func.grad(loss)(w, phi)

        return optdiff.unroll(step, w, STEPS, rates, truncate=3, **options).pow(3).sum()

    late = torch.tensor([0.1, 0.2, 0.15], requires_grad=True)
    assert gradcheck(outer, late)
    assert gradgradcheck(outer, late)


def test_third_derivatives():
    def hypergradient(*at):
        value = objective(by_autograd, checkpoint=3)(*at)
        return torch.autograd.grad(value, at[1], create_graph=True)[0]

    assert gradgradcheck(hypergradient, leaves())


def batches():
    torch.manual_seed(2)
    return torch.randn(4, 3), torch.rand(4) / 10, torch.randn(4, 3)


def total(outer):
    return lambda *at: torch.func.vmap(outer)(*at).sum()


def in_one_dual_level(outer):
    with forward_ad.dual_level():
        points = [forward_ad.make_dual(t, torch.ones_like(t)) for t in inputs()]
        return tuple(forward_ad.unpack_dual(outer(*points)))


TRANSFORMS = {
    "grad": lambda f: F.grad(f, (0, 1, 2))(*inputs()),
    "jacrev": lambda f: F.jacrev(f, (0, 1, 2))(*inputs()),
    "jacfwd": lambda f: F.jacfwd(f, (0, 1, 2))(*inputs()),
    "jvp": lambda f: F.jvp(f, inputs(), inputs()),
    "dual level": in_one_dual_level,
    "hessian": lambda f: F.hessian(f, 2)(*inputs()),
    "jacrev of jacrev": lambda f: F.jacrev(F.jacrev(f, 2), 1)(*inputs()),
    "jacrev of jacfwd": lambda f: F.jacrev(F.jacfwd(f, 2), 2)(*inputs()),
    "jacfwd of jacfwd": lambda f: F.jacfwd(F.jacfwd(f, 2), 2)(*inputs()),
    "vmap": lambda f: F.vmap(f)(*batches()),
    "vmap of grad": lambda f: F.vmap(F.grad(f, (0, 1, 2)))(*batches()),
    "vmap of hessian": lambda f: F.vmap(F.hessian(f, 2))(*batches()),
    "vmap of grad, one batched": lambda f: F.vmap(F.grad(f, 2), (0, None, None))(
        batches()[0], *inputs()[1:]
    ),
    "grad of vmap": lambda f: F.grad(total(f), (0, 1, 2))(*batches()),
    "vmap of vmap": lambda f: F.vmap(F.vmap(f, (0, None, None)), (None, 0, 0))(*batches()),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("checkpoint", ["sqrt", 3])
def test_transforms_of_torch_func(transform, checkpoint):
    close(transform(objective(by_func, checkpoint=checkpoint)), transform(objective(by_func)))


def test_inner_gradients_of_torch_autograd_inside_torch_func():
    def first(step, checkpoint):
        return F.grad(objective(step, checkpoint=checkpoint), (0, 1, 2))(*inputs())

    close(first(by_autograd, "sqrt"), first(by_func, None))
    close(first(by_autograd, None), first(by_func, None))


def test_backward_through_vmap():
    def first(**options):
        _, lr, phi = leaves()
        value = F.vmap(objective(by_func, **options), (0, None, None))(batches()[0], lr, phi)
        return torch.autograd.grad(value.sum(), (lr, phi))

    close(first(checkpoint="sqrt"), first())
