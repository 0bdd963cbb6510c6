# SPDX-License-Identifier: Apache-2.0
"""Meta classes differentiate exactly, and twice, in hyperparameters and starting points."""

import inspect

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import optcore
import optdiff

X, Y = torch.linspace(-1, 1.5, 12).view(4, 3).double(), torch.linspace(0, 2, 8).view(4, 2).double()
LR, B1, DECAY = 0.05, 0.8, 0.1

# what the class takes besides lr -> values at which two steps are smooth
CASES = {
    "sgd": (optdiff.MetaSGD, ("momentum", "weight_decay"), (0.7, DECAY), {"nesterov": True}),
    "adam": (optdiff.MetaAdam, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
    "adamw": (optdiff.MetaAdamW, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
    "amsgrad": (optdiff.MetaAMSGrad, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
    "nadam": (optdiff.MetaNAdam, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
    "radam": (optdiff.MetaRAdam, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
    "adabelief": (optdiff.MetaAdaBelief, ("betas",), (B1,), {"eps": 1e-2}),
    "yogi": (optdiff.MetaYogi, ("betas",), (B1,), {"eps": 1e-2}),
    "rmsprop": (optdiff.MetaRMSprop, ("alpha", "weight_decay"), (0.9, DECAY), {"eps": 1e-2}),
    "adagrad": (optdiff.MetaAdagrad, ("weight_decay",), (DECAY,), {"eps": 1e-2}),
    "adadelta": (optdiff.MetaAdadelta, ("rho", "weight_decay"), (0.9, DECAY), {"eps": 1e-2}),
    "lamb": (optdiff.MetaLamb, ("betas", "weight_decay"), (B1, DECAY), {"eps": 1e-2}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_gradcheck_and_gradgradcheck(case):
    cls, names, values, options = case
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    start = optdiff.extract_state_dict(net)

    def outer(weight, phi, lr, *hyperparams):
        optdiff.recover_state_dict(net, start)
        net._parameters["weight"] = weight
        given = dict(zip(names, hyperparams, strict=True))
        learned = {k: (v, 0.9) if k == "betas" else v for k, v in given.items()}
        meta = cls(net, lr=lr, **learned, **options)
        for _ in range(2):
            meta.step((net(X * phi) - Y).square().mean())
        return (net(X) - Y).square().mean()

    weight, phi = net.weight.detach().clone().requires_grad_(), torch.full((3,), 0.9)
    at = (weight, phi.requires_grad_(), *(torch.tensor(v).requires_grad_() for v in (LR, *values)))
    assert gradcheck(outer, at)
    assert gradgradcheck(outer, at)


def rows_of(classes):
    return {cls.row.name for cls in classes if getattr(cls, "row", None) is not None}


def test_every_differentiable_optimizer_has_a_meta_class_under_all_its_names():
    classes = [value for name, value in vars(optdiff).items() if name.startswith("Meta")]
    # steps that are signs, or sizes that only signs change, have no derivative in the gradient
    every = {**optcore.OPTIMIZERS, **optcore.INFORMED_OPTIMIZERS}
    assert set(every) - rows_of(classes) == {"rprop", "sign_sgd", "signum"}
    for row in optcore.OPTIMIZERS.values():
        spelled = {getattr(optdiff, f"Meta{n}", None) for n in (row.class_name, *row.also)}
        assert len(spelled) == 1


MOMENTS = [
    name
    for name, row in optcore.OPTIMIZERS.items()
    if "moment_requires_grad" in inspect.signature(row.factory).parameters
    and hasattr(optdiff, f"Meta{row.class_name}")
]


@pytest.mark.parametrize("name", MOMENTS)
def test_moments_that_require_grad(name):
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    row = optcore.OPTIMIZERS[name]
    options = {"momentum": 0.9} if name == "sgd" else {}
    meta = getattr(optdiff, f"Meta{row.class_name}")(
        net, lr=0.1, moment_requires_grad=True, **options
    )
    tensors = []
    optcore.map_tensors(tensors.append, meta.state_dict()[0])
    moments = [tensor for tensor in tensors if tensor.requires_grad]
    assert moments
    meta.step((net(X) - Y).square().mean())
    found = torch.autograd.grad(net(X).sum(), moments, allow_unused=True)
    assert any(g is not None and g.abs().sum() > 0 for g in found)


def test_one_call_stops_model_and_optimizer_and_learning_goes_on():
    net = nn.Linear(3, 2).double()
    lr = torch.tensor(0.1, requires_grad=True)
    meta = optdiff.MetaAdam(net, lr=lr)
    meta.add_param_group(other := nn.Linear(2, 2).double())
    for _ in range(2):
        meta.step((other(net(X)) - Y).square().mean())
        optdiff.stop_gradient(net, other, meta)
        tensors = []
        optcore.map_tensors(tensors.append, meta.state_dict())
        assert not any(t.grad_fn for t in (*tensors, *net.parameters(), *other.parameters()))
    meta.step((other(net(X)) - Y).square().mean())
    assert torch.autograd.grad(other(net(X)).sum(), lr)[0] != 0
