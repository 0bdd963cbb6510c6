# SPDX-License-Identifier: Apache-2.0
"""What kernels take and refuse: sizes, layouts, views, lists, and what changes when they refuse."""

import gc
import re
import weakref

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import optcore

OPTIMIZERS = {
    "descent": lambda fast, **more: optcore.sgd(0.1, weight_decay=0.1, use_accelerated_op=fast),
    "momentum": lambda fast, **more: optcore.sgd(
        0.1, momentum=0.9, dampening=0.1, use_accelerated_op=fast
    ),
    "adamw": lambda fast, **more: optcore.adamw(0.1, use_accelerated_op=fast),
    "amsgrad": lambda fast, **more: optcore.amsgrad(0.1, use_accelerated_op=fast),
    "rmsprop": lambda fast, **more: optcore.rmsprop(
        0.1, momentum=0.9, centered=True, use_accelerated_op=fast
    ),
    "adagrad": lambda fast, **more: optcore.adagrad(0.1, use_accelerated_op=fast),
    "lion": lambda fast, **more: optcore.lion(0.1, use_accelerated_op=fast),
}
SIZES = [0, 1, 2, 3, 31, 1023, 1024, 1025, 1026, 1027, 8191, 8192, 8193, 65537]


def steps(name, params, grads, fast, inplace, count=2):
    """Parameters and state after some steps."""
    tx = OPTIMIZERS[name](fast)
    state = tx.init(params)
    for k in range(count):
        given = [g if k == 0 else g * 0.5 for g in grads]
        params, state = tx.step(given, state, params, inplace=inplace)
    return params, list(state[0][-2:])


def assert_same_steps(name, params, grads, inplace):
    copies = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
    ours = steps(name, params, grads, True, inplace)
    theirs = steps(name, copies, grads, False, False)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sizes(name, inplace, device):
    params = [torch.randn(size, device=device) for size in SIZES]
    grads = [torch.randn(size, device=device) for size in SIZES]
    assert_same_steps(name, params, grads, inplace)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_empty_leaf_lies_anyhow(name, inplace, device):
    params = [torch.zeros(0, 5, 3, device=device), torch.ones(3, device=device)]
    empty = torch.zeros(3, 5, 0, device=device).permute(2, 1, 0)
    assert_same_steps(name, params, [empty, torch.ones(3, device=device)], inplace)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_kept_step_keeps_no_gradient(scheduled, strided):
    """Neither one that kernels read nor one that does not lie like its parameter."""
    w = nn.Parameter(torch.ones(3, 2))
    optimizer = optcore.Adam([w], use_accelerated_op=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1 if scheduled else 9, 0.5)
    gone = []
    for _ in range(3):
        w.grad = torch.ones(2, 3).T if strided else torch.ones(3, 2)
        gone.append(weakref.ref(w.grad))
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert [ref() for ref in gone] == [None] * 3


def test_a_kept_step_is_collected_with_its_parameters():
    """What a step keeps must not hide from the garbage collector a way back to the optimizer."""
    w = nn.Parameter(torch.ones(3))
    w.optimizer = optcore.Adam([w], use_accelerated_op=True)
    for _ in range(3):
        w.grad = torch.ones(3)
        w.optimizer.step()
    gone = weakref.ref(w)
    del w
    gc.collect()
    assert gone() is None


def test_a_refused_step_keeps_no_gradient():
    p, q = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    optimizer = optcore.Adam([{"params": [p]}, {"params": [q]}], use_accelerated_op=True)
    for _ in range(3):
        p.grad, q.grad = torch.ones(4), torch.ones(4)
        optimizer.step()
    p.grad, q.grad = torch.ones(4), q.detach()
    gone = weakref.ref(p.grad)
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()
    optimizer.zero_grad()
    gc.collect()  # errors hold frames
    assert gone() is None


def test_a_kept_step_goes_on_after_one_of_another_layout():
    w, same = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = optcore.Adam([w], lr=0.1, use_accelerated_op=True)
    plain = torch.optim.Adam([same], lr=0.1)
    for strided in (False, False, True, True, False, False):
        grad = torch.randn(3, 2)
        w.grad = grad.T.contiguous().T if strided else grad.clone()
        same.grad = grad
        optimizer.step()
        plain.step()
    torch.testing.assert_close(w, same)


def test_a_kept_step_refuses_a_negated_parameter():
    w = nn.Parameter(torch.ones(1))
    optimizer = optcore.Lion([w], lr=0.1, weight_decay=0.0, use_accelerated_op=True)
    for _ in range(2):
        w.grad = torch.ones(1)
        optimizer.step()
    w.data = torch.complex(torch.zeros(1), torch.full((1,), 5.0)).conj().imag
    with pytest.raises(TypeError, match="lazily negated view"):
        optimizer.step()
    assert w.item() == -5.0


def test_tracers_are_refused():
    def step(w, g):
        tx = optcore.lion(0.1, use_accelerated_op=True)
        return tx.step([g], tx.init([w]), [w], inplace=False)[0][0]

    with torch.no_grad(), pytest.raises(RuntimeError, match="expected no tracer"):
        make_fx(step)(torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("inplace", [True, False])
def test_a_million_and_one(inplace, device):
    params, grads = [torch.randn(10**6 + 1, device=device)], [torch.randn(10**6 + 1, device=device)]
    assert_same_steps("adamw", params, grads, inplace)


@pytest.mark.parametrize("size", [0, 1, 3, 1023, 1025, 8193, 20001])
def test_backward_of_every_size(size, device):
    found = []
    start = torch.randn(size, device=device)
    for fast in (True, False):
        rate = torch.tensor(0.1, requires_grad=True)
        tx = optcore.adamw(rate, eps=0.1, use_accelerated_op=fast)
        w = start.clone().requires_grad_()
        moved, _ = tx.step([w.sin()], tx.init([w]), [w], inplace=False)
        found.append(torch.autograd.grad(moved[0].cos().sum(), [w, rate]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def channels_last(shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


# name: makes a tensor of shape (2, 3, 4, 5) or less that lies otherwise than row by row
LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 3, 4, 5),
    "transposed": lambda: torch.randn(5, 3, 4, 2).transpose(0, 3),
    "channels last": lambda: channels_last((2, 3, 4, 5)),
    "strided": lambda: torch.randn(2, 3, 8, 5)[:, :, ::2],
    "offset": lambda: torch.randn(2 * 3 * 4 * 5 + 3)[3:].view(2, 3, 4, 5),
    "sliced": lambda: torch.randn(4, 3, 4, 9)[1:3, :, :, 2:7],
}


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("of_grad", [*LAYOUTS, "expanded"])
@pytest.mark.parametrize("of_param", LAYOUTS)
def test_layouts(of_param, of_grad, inplace, device):
    layouts = {**LAYOUTS, "expanded": lambda: torch.randn(3, 1, 5).expand(2, 3, 4, 5)}
    param, grad = LAYOUTS[of_param]().to(device), layouts[of_grad]().to(device)
    assert_same_steps(
        "adamw", [param, torch.ones(3, device=device)], [grad, torch.ones(3)], inplace
    )


@pytest.mark.parametrize("of_param", LAYOUTS)
def test_a_step_in_place_writes_only_its_own_elements(of_param):
    """What lies between the elements of a view stays."""
    param = LAYOUTS[of_param]()
    memory = torch.as_strided(param, (param.untyped_storage().nbytes() // 8,), (1,), 0)
    places = torch.zeros_like(memory)
    own = torch.as_strided(places, param.shape, param.stride(), param.storage_offset())
    own.fill_(1.0)
    before = memory.clone()
    steps("adamw", [param], [torch.ones_like(param)], True, True, count=1)
    assert torch.equal(memory != before, places != 0)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_lists(count, inplace, device):
    params = [torch.randn(k % 7, device=device) for k in range(count)]
    grads = [torch.randn(k % 7, device=device) for k in range(count)]
    assert_same_steps("adamw", params, grads, inplace)


def test_a_thousand_leaves_backward(device):
    starts = [torch.randn(k % 7, device=device) for k in range(1000)]
    found = []
    for fast in (True, False):
        factor = torch.tensor(0.3, requires_grad=True, device=device)
        tx = optcore.adam(0.1, eps=0.1, use_accelerated_op=fast)
        moved, _ = tx.step([s * factor for s in starts], tx.init(starts), starts, inplace=False)
        found.append(torch.autograd.grad(sum(p.sum() for p in moved), factor))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)


def test_gradients_may_share_memory_with_each_other():
    grad = torch.randn(5)
    params = [torch.randn(5), torch.randn(4)]
    assert_same_steps("adamw", params, [grad, grad[1:]], True)


# ---- in place: what is written, and what is not -------------------------------------------------


def versions(tensors):
    return [tensor._version for tensor in tensors]


def test_versions_count_what_is_written_and_nothing_else():
    params = [torch.randn(5), torch.randn(2, 3)]
    grads = [torch.randn(5), torch.randn(2, 3)]
    copies = [g.clone() for g in grads]
    tx = optcore.adam(use_accelerated_op=True)
    state = tx.init(params)
    written = [*params, *state[0].mu, *state[0].nu]
    before, untouched = versions(written), versions(grads)
    tx.step(grads, state, params, inplace=True)
    assert versions(written) == [version + 1 for version in before]
    assert versions(grads) == untouched
    assert all(map(torch.equal, grads, copies))


def test_an_update_in_place_leaves_parameters_alone_and_gives_new_memory():
    params, grads = [torch.randn(5)], [torch.randn(5)]
    tx = optcore.adam(use_accelerated_op=True)
    state = tx.init(params)
    before, known = params[0].clone(), versions([*params, *grads])
    updates, after = tx.update(grads, state, params, inplace=True)
    assert torch.equal(params[0], before)
    assert versions([*params, *grads]) == known
    assert after[0].mu[0] is state[0].mu[0]
    pointers = {x.data_ptr() for x in (*params, *grads, *after[0].mu, *after[0].nu, *updates)}
    assert len(pointers) == 5


def test_an_earlier_graph_notices_a_step_in_place():
    w = torch.randn(3, requires_grad=True)
    loss = w.square().sum()
    optimizer = optcore.Adam([w], use_accelerated_op=True)
    w.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode():
    with torch.inference_mode():
        params, grads = [torch.randn(3)], [torch.randn(3)]
        ours = optcore.adam(use_accelerated_op=True)
        moved, state = ours.step(grads, ours.init(params), params, inplace=True)
        moved, _ = ours.step(grads, state, moved, inplace=True)
    assert moved[0] is params[0]
    assert moved[0].is_inference()


def test_tensors_of_inference_mode_are_refused_outside():
    with torch.inference_mode():
        frozen = torch.zeros(3)
    plain = torch.zeros(3)
    tx = optcore.adam(use_accelerated_op=True)
    params = [plain, frozen]
    with pytest.raises(RuntimeError, match="inference mode"):
        tx.step([torch.ones(3)] * 2, tx.init(params), params, inplace=True)
    assert plain.eq(0).all()


def test_parameters_of_a_module_on_several_paths():
    """A tied parameter moves once, by the sum of its gradients."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    optimizer = optcore.Adam(net.parameters(), use_accelerated_op=True)
    twin = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twin[1].weight = twin[0].weight
    twin.load_state_dict(net.state_dict())
    other = torch.optim.Adam(twin.parameters())
    for own, each in ((net, optimizer), (twin, other)):
        for _ in range(3):
            each.zero_grad()
            own(torch.ones(2, 3)).square().sum().backward()
            each.step()
    torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-12, atol=1e-12)


# ---- refusals -----------------------------------------------------------------------------------


class Tagged(torch.Tensor):
    pass


def tagged(tensor):
    return tensor.as_subclass(Tagged)


SHARED = torch.zeros(6, dtype=torch.float64)
# name: second parameter, its gradient, error, message; the first parameter is an ordinary one
REFUSED = {
    "a gradient that is a parameter": (
        p := torch.ones(3, dtype=torch.float64),
        p,
        ValueError,
        "adam: expected tensors that do not share memory, got params[1] over params[1], grad; "
        "clone one of them",
    ),
    "a gradient that overlaps a parameter": (
        SHARED[:4],
        SHARED[2:],
        ValueError,
        "params[1] over params[1], grad",
    ),
    "an expanded parameter": (
        torch.zeros(1, dtype=torch.float64).expand(3),
        torch.ones(3, dtype=torch.float64),
        ValueError,
        "expected memory of its own for every element that is written, got a view that overlaps "
        "itself, f64[3], at params[1]; clone it",
    ),
    "a parameter that overlaps itself": (
        torch.zeros(9, dtype=torch.float64).as_strided((2, 2), (3, 3)),
        torch.ones(2, 2, dtype=torch.float64),
        ValueError,
        "expected memory of its own for every element that is written",
    ),
    "a gradient of a subclass": (
        torch.zeros(3, dtype=torch.float64),
        tagged(torch.ones(3, dtype=torch.float64)),
        TypeError,
        "expected a torch.Tensor, got Tagged, at params[1], grad; kernels know no subclasses: "
        "leave use_accelerated_op out",
    ),
    "a sparse gradient": (
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64).to_sparse(),
        TypeError,
        "expected dense gradients, got torch.sparse_coo",
    ),
    "a complex gradient": (
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.complex128),
        TypeError,
        "expected real floating gradients, got c128[3]",
    ),
    "a gradient of another shape": (
        torch.zeros(3, dtype=torch.float64),
        torch.ones(2, dtype=torch.float64),
        ValueError,
        "expected a gradient like its parameter f64[3], got f64[2]",
    ),
    "a gradient on another device": (
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64, device="meta"),
        RuntimeError,
        "expected tensors on cpu or cuda, got meta; leave use_accelerated_op out",
    ),
    "a gradient that is lazily negated": (
        torch.zeros(3, dtype=torch.float64),
        torch._neg_view(torch.ones(3, dtype=torch.float64)),
        TypeError,
        "expected tensors that hold their values, got a lazily negated view, at params[1], grad; "
        "call .resolve_neg()",
    ),
    "a parameter that is lazily negated": (
        torch._neg_view(torch.ones(3, dtype=torch.float64)),
        torch.ones(3, dtype=torch.float64),
        TypeError,
        "expected tensors that hold their values, got a lazily negated view, at params[1]; call",
    ),
    "an eight-bit gradient": (
        torch.zeros(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64).to(torch.float8_e5m2),
        TypeError,
        "expected a dense float64, float32, bfloat16 or float16 tensor on cpu or cuda, got "
        "torch.float8_e5m2 torch.strided on cpu, at params[1], grad",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_changes_nothing(case):
    second, grad, error, message = REFUSED[case]
    params, grads = [torch.ones(2), second], [torch.ones(2), grad]
    tx = optcore.adam(use_accelerated_op=True)
    state = tx.init([torch.zeros(p.shape) for p in params])
    everything = [params[0], *state[0].mu, *state[0].nu, state[0].count[0]]
    before, known = [x.clone() for x in everything], versions([*everything, second])
    with pytest.raises(error, match=re.escape(message)):
        tx.step(grads, state, params, inplace=True)
    assert all(map(torch.equal, everything, before))
    assert versions([*everything, second]) == known


@pytest.mark.parametrize("first", [True, False], ids=["first step", "repeated step"])
@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda p: p.data, ValueError),
        (lambda p: torch._neg_view(torch.ones(3)), TypeError),
        (lambda p: tagged(torch.ones(3)), TypeError),
    ],
    ids=["own memory", "negated", "subclass"],
)
def test_a_class_that_is_refused_a_step_goes_on_as_if_it_had_not_been_asked(spoil, error, first):
    """Also where other parameters, of another group or dtype, would have moved before."""
    found = []
    for refuse in (True, False):
        groups = [[torch.ones(2)], [torch.ones(4).float(), torch.ones(3)]]
        groups = [[p.requires_grad_() for p in group] for group in groups]
        optimizer = optcore.AdamW([{"params": g} for g in groups], use_accelerated_op=True)
        every = [p for group in groups for p in group]

        def good(every=every):
            for p in every:
                p.grad = torch.full_like(p, 0.5)

        def spoiled(every=every, optimizer=optimizer):
            good(every)
            every[-1].grad = spoil(every[-1])
            known = versions(every)
            with pytest.raises(error):
                optimizer.step()
            assert versions(every) == known

        events = {True: [[spoiled], []], False: [[], [spoiled]]}[first] if refuse else [[], []]
        for event in events[0]:
            event()
        for _ in range(2):
            good()
            optimizer.step()
        for event in events[1]:
            event()
        good()
        optimizer.step()
        found.append([*every, *(x for s in optimizer.state.values() for x in s.values())])
    assert all(map(torch.equal, *found))


def test_a_learning_rate_for_each_element_is_refused():
    tx = optcore.adam(torch.full((3,), 0.1), use_accelerated_op=True)
    params = [torch.ones(3)]
    rest = "expected b1 as a number or a tensor without axes, got one of shape [3]"
    scaled = optcore.scale_by_adam(torch.full((3,), 0.1), use_accelerated_op=True)
    with pytest.raises(NotImplementedError, match=re.escape(rest)):
        scaled.update([torch.ones(3)], scaled.init(params))
    plain = optcore.adam(torch.full((3,), 0.1))
    grads = [torch.ones(3)]  # the rule has a kernel still, what follows it is torch's
    found = [each.step(grads, each.init(params), params, inplace=False)[0] for each in (tx, plain)]
    torch.testing.assert_close(*found)


def test_narrow_leaves_stay_so_beside_wide_scalars():
    """Also leaves without axes, which a tensor of more bits would promote."""
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    w = torch.ones((), dtype=torch.float32, requires_grad=True)
    tx = optcore.adam(rate, use_accelerated_op=True)
    moved, state = tx.step([w.sin()], tx.init([w]), [w], inplace=False)
    first = torch.autograd.grad(moved[0], [w, rate], create_graph=True)
    second = torch.autograd.grad(first[0] + first[1], [w, rate])
    dtypes = [x.dtype for x in (*moved, *state[0].mu, *first, *second)]
    narrow, wide = torch.float32, torch.float64
    assert dtypes == [narrow, narrow, narrow, wide, narrow, wide]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e150, 1e-300, -0.0])
def test_what_is_no_ordinary_number_goes_on_as_in_torch(name, bad):
    grads = [torch.tensor([1.0, bad, 2.0])]
    found = []
    for fast in (True, False):
        params = [torch.tensor([1.0, 2.0, bad])]
        found.append(steps(name, params, grads, fast, fast, count=1))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_a_maximum_that_is_no_number_stays_so():
    found = []
    for fast in (True, False):
        tx = optcore.amsgrad(0.1, use_accelerated_op=fast)
        params = [torch.ones(2)]
        (state, *rest) = tx.init(params)
        state = state._replace(nu_max=[torch.tensor([float("nan"), 1.0])])
        found.append(tx.step([torch.ones(2)], (state, *rest), params, inplace=False))
    torch.testing.assert_close(*(f[0] for f in found), equal_nan=True)
    torch.testing.assert_close(*(list(f[1][0].nu_max) for f in found), equal_nan=True)
