# SPDX-License-Identifier: Apache-2.0
"""Steps in place that take several calls of kernels: all checks come before the first of them."""

import gc
import re
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optcore
from treeops import tree_leaves

F32 = torch.float32


def versions(tensors):
    return [tensor._version for tensor in tensors]


def everything(*trees):
    return [x for tree in trees for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


def refused(run, message, *trees, error=ValueError):
    """That a step is refused and nothing changes, versions included."""
    tensors = everything(*trees)
    before, known = [t.detach().clone() for t in tensors], versions(tensors)
    with pytest.raises(error, match=re.escape(message)):
        run()
    assert all(map(torch.equal, tensors, before))
    assert versions(tensors) == known


# ---- one bad call among several -----------------------------------------------------------------


def mixed(device):
    """Two dtypes, so two calls; the second one's buffer is made bad by the test."""
    params = {"a": torch.ones(3), "b": torch.ones(2, dtype=F32), "c": torch.ones(4, dtype=F32)}
    params = {name: p.to(device) for name, p in params.items()}
    return params, {name: torch.ones_like(p) for name, p in params.items()}


MAKERS = {
    "adam": lambda: optcore.adam(use_accelerated_op=True),
    "adamw": lambda: optcore.adamw(use_accelerated_op=True),
    "lion": lambda: optcore.lion(use_accelerated_op=True),
    "rmsprop": lambda: optcore.rmsprop(momentum=0.9, use_accelerated_op=True),
    "adam after a formula": lambda: optcore.chain(
        optcore.clip(0.5), optcore.scale_by_adam(use_accelerated_op=True)
    ),
    "a rule alone": lambda: optcore.scale_by_adam(use_accelerated_op=True),
}


def spoiled(state):
    """A state the last buffer of which lacks an element at its last leaf."""
    leaves = [x for x in tree_leaves(state) if x.is_floating_point()]
    last = leaves[-1]
    last.set_(last.new_zeros(last.numel() + 1))
    return state


@pytest.mark.parametrize("way", ["update", "step"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_bad_buffer_of_the_last_call(name, way, device):
    params, grads = mixed(device)
    tx = MAKERS[name]()
    state = spoiled(tx.init(params))
    take = getattr(tx, way)
    run = lambda: take(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "f32[5]", params, grads, state)


def test_a_bad_buffer_of_a_second_transformation():
    """The first one has a kernel too, which must not have run."""
    tx = optcore.rmsprop(momentum=0.9, centered=True, use_accelerated_op=True)
    params = [torch.ones(3), torch.ones(3)]
    rms, momentum, *rest = tx.init(params)
    momentum = momentum._replace(trace=[momentum.trace[0], torch._neg_view(torch.ones(3))])
    state = (rms, momentum, *rest)
    run = lambda: tx.update(params, state, params, inplace=True)  # noqa: E731
    message = (
        "rmsprop: expected tensors that hold their values, got a lazily negated view, at [1], "
    )
    refused(run, message + "trace;", params, momentum, rms, error=TypeError)


def test_a_missing_parameter_of_a_decay_after_a_kernel():
    tx = optcore.adamw(use_accelerated_op=True)
    params, grads = [torch.ones(3)], [torch.ones(3)]
    state = tx.init(params)
    run = lambda: tx.update(grads, state, [torch.ones(2)], inplace=True)  # noqa: E731
    refused(run, "f64[2]", params, grads, state)


@pytest.mark.parametrize("way", ["update", "step"])
def test_differing_counts(way, device):
    """A leaf that missed a step has a call of its own."""
    params, grads = ([torch.ones(n, device=device) for n in (3, 4)] for _ in range(2))
    tx = optcore.adam(use_accelerated_op=True)
    _, state = tx.update([grads[0], None], tx.init(params), params, inplace=True)
    state[0].nu[1].set_(torch.zeros(5, device=device))
    take = getattr(tx, way)
    run = lambda: take(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "expected a tensor like f64[4], got f64[5]", params, grads, state)


def test_a_scalar_that_no_call_can_read():
    tx = optcore.adam(
        torch.tensor(0.1, dtype=torch.complex64).real.float(), use_accelerated_op=True
    )
    params = [torch.ones(3), torch.ones(2, dtype=F32)]
    tx = optcore.adam(torch.tensor(0.1, device="meta"), use_accelerated_op=True)
    state = tx.init(params)
    run = lambda: tx.step(params, state, params, inplace=True)  # noqa: E731
    refused(run, "on meta", params, state, error=TypeError)


def test_nothing_lives_on_after_a_call():
    """Also after one that was refused: a call holds tensors, and nothing that holds the call."""
    gone = []

    def run(bad):
        params, grads = (
            [torch.ones(3), torch.ones(2, dtype=F32)],
            [torch.ones(3), torch.ones(2, dtype=F32)],
        )
        gone.extend(weakref.ref(g) for g in grads)
        tx = optcore.chain(optcore.clip(1.0), optcore.adam(use_accelerated_op=True))
        whole = optcore.adam(use_accelerated_op=True)
        for each, take in ((tx, tx.update), (whole, whole.update), (whole, whole.step)):
            state = each.init(params)
            if not bad:
                take(grads, state, params, inplace=True)
                continue
            with pytest.raises(ValueError, match="f32"):
                take(grads, spoiled(state), params, inplace=True)

    gc.disable()
    try:
        run(False)
        run(True)
    finally:
        gc.enable()
    gc.collect()  # errors hold frames
    assert [ref() for ref in gone] == [None] * 4


# ---- steps that are no single call ---------------------------------------------------------------


def two_groups(rate):
    """A group that could move, and one whose learning rate is given by parameter."""
    params = [torch.ones(n, requires_grad=True) for n in (3, 3, 4)]
    groups = [{"params": params[:1]}, {"params": params[1:], "lr": rate}]
    optimizer = optcore.Adam(groups, lr=0.1, use_accelerated_op=True)
    for p in params:
        p.grad = torch.ones_like(p)
    return params, optimizer


def negated(params):
    params[2].grad = torch._neg_view(torch.ones(4))


def shared_inside(params):
    memory = torch.ones(6)
    params[1].data, params[2].data = memory[:3], memory[2:]


def shared_across(params):
    memory = torch.ones(6)
    params[0].data, params[2].data = memory[:3], memory[2:]


def overlapping_itself(params):
    params[2].data = torch.ones(1).expand(4)


def its_own_gradient(params):
    params[2].grad = params[2].data


def gradient_of_another(params):
    params[1].grad = params[0].data


SPOILS = {
    negated: (TypeError, "lazily negated view, at parameter 1 of group 1, grad"),
    shared_inside: (ValueError, "got parameter 0 of group 1 over parameter 1 of group 1;"),
    shared_across: (ValueError, "got parameter 0 of group 0 over parameter 1 of group 1;"),
    overlapping_itself: (ValueError, "overlaps itself, f64[4], at parameter 1 of group 1;"),
    its_own_gradient: (ValueError, "parameter 1 of group 1, grad"),
    gradient_of_another: (ValueError, "parameter 0 of group 1, grad"),
}


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("rate", [0.2, {0: 0.1, 1: 0.2}], ids=["one rate", "a rate each"])
def test_a_class_is_checked_before_its_first_group_moves(spoil, warm, rate):
    params, optimizer = two_groups(rate)
    for _ in range(warm):
        optimizer.step()
    spoil(params)
    error, message = SPOILS[spoil]
    held = len(optimizer.state)
    refused(optimizer.step, "Adam: ", params, [*optimizer.state.values()], error=error)
    refused(optimizer.step, message, params, [*optimizer.state.values()], error=error)
    assert len(optimizer.state) == held


@pytest.mark.parametrize("way", ["update", "step"])
def test_a_partition_is_checked_before_its_first_label_moves(way):
    params, grads = {"x": torch.ones(3), "y": torch.ones(3)}, {"x": torch.ones(3)}
    grads["y"] = torch._neg_view(torch.ones(3))
    adam = optcore.adam(use_accelerated_op=True)
    tx = optcore.partition({"a": adam, "b": adam}, {"x": "a", "y": "b"})
    state, take = tx.init(params), getattr(tx, way)
    run = lambda: take(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "lazily negated view, at ", params, state, error=TypeError)
    refused(run, "['y'], grad; call", params, state, error=TypeError)


FAST = {"use_accelerated_op": True}
# what stands behind `trace`, and the state of its `scale_by_adam`
BEHIND = {
    "at once": (lambda adam: [adam], lambda s: s[1]),
    "behind a formula": (lambda adam: [optcore.scale(2.0), adam], lambda s: s[2]),
    "behind a norm": (lambda adam: [optcore.clip_by_global_norm(1.0), adam], lambda s: s[2]),
    "in a chain": (lambda adam: [optcore.chain(optcore.clip(1.0), adam)], lambda s: s[1][1]),
    "masked": (lambda adam: [optcore.masked(adam, [False, True])], lambda s: s[1].inner_state),
    "accumulated": (lambda adam: [optcore.multi_steps(adam, 1)], lambda s: s[1].inner_opt_state),
    "if finite": (lambda adam: [optcore.apply_if_finite(adam, 3)], lambda s: s[1].inner_state),
}


@pytest.mark.parametrize("way", ["update", "step"])
@pytest.mark.parametrize("name", BEHIND)
def test_a_chain_is_checked_before_its_first_link_moves(name, way):
    following, find = BEHIND[name]
    members = following(optcore.scale_by_adam(**FAST))
    tx = optcore.chain(optcore.trace(0.9, **FAST), *members)
    params, grads = [torch.ones(3), torch.ones(4)], [torch.ones(3), torch.ones(4)]
    state, take = tx.init(params), getattr(tx, way)
    own = find(state)
    own.nu[1].set_(own.mu[1])
    run = lambda: take(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "[1], mu over ", params, state)
    own.nu[1].set_(torch.zeros(5))
    refused(run, "expected a tensor like f64[4], got f64[5]", params, state)


def test_a_formula_before_a_kernel_has_not_moved():
    tx = optcore.chain(optcore.trace(0.9), optcore.clip(1.0), optcore.scale_by_adam(**FAST))
    params = [torch.ones(3)]
    state = tx.init(params)
    state[2].nu[0].set_(state[2].mu[0])
    run = lambda: tx.update(params, state, inplace=True)  # noqa: E731
    refused(run, "chain: expected tensors that do not share memory, got [0], mu", params, state)


def test_a_named_chain_and_injected_hyperparameters():
    adam = optcore.inject_hyperparams(optcore.adam)(lr=0.1, **FAST)
    tx = optcore.named_chain(("momentum", optcore.trace(0.9, **FAST)), ("adam", adam))
    params = [torch.ones(3)]
    state = tx.init(params)
    own = state["adam"].inner_state[0]
    own.nu[0].set_(own.mu[0])
    run = lambda: tx.update(params, state, params, inplace=True)  # noqa: E731
    refused(run, "[0], mu over ", params, list(state.values()))


def test_a_value_per_element_of_a_later_kernel():
    adam = optcore.scale_by_adam(torch.full((3,), 0.9), **FAST)
    tx = optcore.chain(optcore.trace(0.9, **FAST), optcore.clip(1.0), adam)
    params = [torch.ones(3)]
    state = tx.init(params)
    run = lambda: tx.update(params, state, inplace=True)  # noqa: E731
    message = "scale_by_adam(use_accelerated_op=True): expected b1 as a number"
    refused(run, message, params, state, error=NotImplementedError)


def test_what_a_check_must_not_refuse():
    """Negated gradients that a formula reads first, tied parameters, hidden and missing leaves."""
    w = torch.ones(3)
    params = [w, w, torch.ones(2)]
    grads = [torch._neg_view(torch.ones(3)), torch.ones(3), None]
    found = []
    for fast in (True, False):
        adam = optcore.scale_by_adam(use_accelerated_op=fast)
        inner = optcore.masked(adam, [True, False, True])
        tx = optcore.chain(optcore.clip(0.5), inner, optcore.scale(-0.1))
        own = [w.clone()] * 2 + [torch.ones(2)]
        found.append(tx.step(grads, tx.init(params), own, inplace=True)[0])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_hidden_leaves_and_gradients_that_become_dense_are_none_of_its_business():
    hidden = optcore.masked(optcore.adam(**FAST), [True, False])
    params = [torch.ones(3), torch.ones(2, dtype=torch.complex128)]
    state = hidden.init(params)
    hidden.step([torch.ones(3), torch.ones_like(params[1])], state, params, inplace=True)
    assert torch.equal(params[1], torch.full_like(params[1], 2))
    dense = optcore.stateless(lambda updates, _: [u.to_dense() for u in updates])
    tx = optcore.chain(dense, optcore.trace(0.9, **FAST), optcore.clip(1.0), optcore.lion(**FAST))
    state = tx.init(params[:1])
    new, _ = tx.step([torch.ones(3).to_sparse()], state, params[:1], inplace=True)
    assert new[0] is params[0]
    summed = optcore.multi_steps(optcore.adam(**FAST), 2)
    state = summed.init(params[:1])
    summed.step([torch._neg_view(torch.ones(3))], state, params[:1], inplace=True)


ONE_VECTOR = {
    "masked": lambda adam: optcore.masked(adam, True),
    "if finite": lambda adam: optcore.apply_if_finite(adam, 3),
    "injected": lambda _: optcore.inject_hyperparams(optcore.adam)(lr=0.1, **FAST),
}


@pytest.mark.parametrize("name", ONE_VECTOR)
def test_states_of_other_trees_are_left_to_those_who_know_them(name):
    tx = optcore.flatten(ONE_VECTOR[name](optcore.adam(0.1, **FAST)))
    params = [torch.ones(3), torch.ones(2)]
    new, _ = tx.step([torch.ones(3), torch.ones(2)], tx.init(params), params, inplace=True)
    expected = [torch.full_like(p, 0.9) for p in params]
    torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-6)


class Empties(TorchDispatchMode):
    """How many elements ``empty_like`` gave."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        named = function is torch.ops.aten.empty_like.default
        self.elements += result.numel() if named else 0
        return result


def test_checks_take_no_memory():
    tx = optcore.chain(optcore.clip(1.0), optcore.scale_by_adam(**FAST))
    params = [torch.ones(1000)]
    state = tx.init(params)
    with Empties() as seen:
        tx.update(params, state, inplace=True)
    assert seen.elements == 1000  # the updates


# ---- memory in common ---------------------------------------------------------------------------


def test_parameters_of_two_groups_that_overlap(device):
    memory = torch.zeros(8, device=device)
    groups = [memory[:5].requires_grad_(), memory[3:].requires_grad_()]
    optimizer = optcore.Adam([{"params": [p]} for p in groups], use_accelerated_op=True)
    for p in groups:
        p.grad = torch.ones_like(p)
    message = (
        "Adam: expected tensors that do not share memory, got parameter 0 of group 0 over "
        "parameter 0 of group 1; clone one of them"
    )
    refused(optimizer.step, message, memory)


def test_a_state_that_is_shared_by_two_groups():
    """Found at a step that repeats the last one too."""
    params = [torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)]
    optimizer = optcore.Adam([{"params": [p]} for p in params], use_accelerated_op=True)
    for p in params:
        p.grad = torch.ones_like(p)
    for _ in range(2):
        optimizer.step()
    first, second = (optimizer.state[p]["exp_avg_sq"] for p in params)
    second.set_(first)
    message = "got parameter 0 of group 0, exp_avg_sq over parameter 0 of group 1, exp_avg_sq"
    refused(optimizer.step, message, *params, first)


def overlapping(kind, device):
    """Parameters that take two calls and share memory, and gradients."""
    memory = torch.zeros(8, device=device)
    last = memory.view(F32)[8:] if kind == "dtypes" else memory[4:]
    params = [memory[:5], last]
    return params, [torch.ones_like(p) for p in params]


@pytest.mark.parametrize("kind", ["dtypes", "counts"])
def test_parameters_of_two_calls_that_overlap(kind, device):
    params, grads = overlapping(kind, device)
    tx = optcore.adam(use_accelerated_op=True)
    state = tx.init(params)
    _, state = tx.update([grads[0], None], state, params, inplace=True)
    run = lambda: tx.step(grads, state, params, inplace=True)  # noqa: E731
    refused(
        run,
        "adam: expected tensors that do not share memory, got params[0] over params[1]",
        params,
        state,
    )


@pytest.mark.parametrize("way", ["update", "step"])
def test_buffers_of_two_calls_that_overlap(way, device):
    params, grads = overlapping("counts", device)
    params = [p.clone() for p in params]
    tx = optcore.adam(use_accelerated_op=True)
    state = tx.init(params)
    _, state = tx.update([grads[0], None], state, params, inplace=True)
    state[0].mu[1].set_(state[0].nu[0][1:])
    take = getattr(tx, way)
    run = lambda: take(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "expected tensors that do not share memory", params, state)


def test_a_gradient_that_is_a_parameter_of_another_call():
    w, v = torch.ones(3), torch.ones(3, dtype=F32)
    tx = optcore.sgd(0.1, use_accelerated_op=True)
    state = tx.init([w, v])
    grads = [torch.ones(3), v]
    run = lambda: tx.step(grads, state, [w, v], inplace=True)  # noqa: E731
    refused(run, "got params[1] over params[1], grad;", w, v)
    grads = [torch.ones(6, dtype=F32).view(torch.float64), w.view(F32)[:3]]
    run = lambda: tx.step(grads, state, [w, v], inplace=True)  # noqa: E731
    refused(run, "got params[0] over params[1], grad", w, v)


# name: views of one memory of 24 elements that have no element in common
APART = {
    "columns": lambda m: (m.view(4, 6)[:, :3], m.view(4, 6)[:, 3:]),
    "narrow columns": lambda m: tuple(m.view(4, 6)[:, k] for k in range(6)),
    "odd and even": lambda m: (m[::2], m[1::2]),
    "rows and columns": lambda m: (m.view(4, 6)[1:, 0], m.view(4, 6)[0], m.view(4, 6)[1:, 1:]),
    "blocks": lambda m: (m.view(2, 3, 4)[:, 0], m.view(2, 3, 4)[:, 1:].transpose(0, 1)),
    "two strides": lambda m: (m[::4], m[1::2]),
    "one after the other": lambda m: (m[:7], m[7:]),
    "an empty one inside": lambda m: (m, m[3:3]),
    "one of the other": lambda m: (m[::3], m[1::3].view(2, 4), m[2::3]),
}
TOGETHER = {
    "columns": lambda m: (m.view(4, 6)[:, :3], m.view(4, 6)[:, 2:]),
    "a column and a row": lambda m: (m.view(4, 6)[:, 5], m.view(4, 6)[3]),
    "strides without a common divisor": lambda m: (m[::2], m[1::3]),
    "only the last element": lambda m: (m[:20], m[19:]),
    "one inside the other": lambda m: (m, m[5:6]),
    "half an element": lambda m: (m[1::2], m.view(F32)[2:3]),
    "transposed": lambda m: (m.view(4, 6).t()[::2], m.view(4, 6)[3:, 2:4]),
}


@pytest.mark.parametrize("name", APART)
def test_views_without_a_common_element_are_accepted(name, device):
    memory, twin = (torch.arange(24.0, device=device) for _ in range(2))
    for own, fast in ((memory, True), (twin, False)):
        params = list(APART[name](own))
        tx = optcore.adamw(0.1, use_accelerated_op=fast)
        state = tx.init(params)
        for _ in range(2):
            params, state = tx.step([p.cos() for p in params], state, params, inplace=True)
    torch.testing.assert_close(memory, twin, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", TOGETHER)
def test_views_with_a_common_element_are_refused(name, device):
    memory = torch.arange(24.0, device=device)
    params = list(TOGETHER[name](memory))
    grads = [torch.ones_like(p) for p in params]
    tx = optcore.adam(0.1, use_accelerated_op=True)
    state = tx.init(params)
    run = lambda: tx.step(grads, state, params, inplace=True)  # noqa: E731
    refused(run, "expected tensors that do not share memory", memory, state)


def reached(shape, strides, offset):
    """The elements of a view, one by one."""
    found = {offset}
    for size, stride in zip(shape, strides, strict=True):
        found = {at + k * stride for at in found for k in range(size)}
    return found


def test_random_views_against_their_elements():
    """Dimensions, strides and offsets at random: refused just where an element is in both."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    tx = optcore.sgd(0.1, use_accelerated_op=True)
    seen = set()
    for _ in range(300):
        memory, found = torch.zeros(400), []
        for _ in range(2):
            strides, shape, span = [], [], 1
            for _ in range(draw(1, 4)):  # nested axes: no element of a view twice
                stride, size = span + draw(0, 4), draw(1, 4)
                strides, shape = [stride, *strides], [size, *shape]
                span = stride * (size - 1) + span
            found.append((shape, strides, draw(0, 40)))
        params = [memory.as_strided(*view) for view in found]
        expected = bool(reached(*found[0]) & reached(*found[1]))
        grads = [torch.ones(p.shape) for p in params]
        try:
            tx.step(grads, tx.init(params), params, inplace=True)
            refusal = False
        except ValueError as error:
            refusal = "do not share memory" in str(error)
        assert refusal == expected, found
        seen.add(expected)
    assert seen == {True, False}


def repeated(shape, strides):
    """Whether two elements of a view lie at one place."""
    indices = torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape))
    places = (indices * torch.tensor(strides)).sum(1)
    return len(places.unique()) < len(places)


def test_random_views_of_themselves():
    """Nested axes or not: refused just where an element has no place of its own."""
    generator = torch.Generator().manual_seed(0)
    tx = optcore.sgd(0.1, use_accelerated_op=True)
    seen = {True: 0, False: 0}
    for _ in range(300):
        axes = int(torch.randint(1, 4, (), generator=generator))
        shape = torch.randint(1, 5, (axes,), generator=generator).tolist()
        strides = torch.randint(0, 10, (axes,), generator=generator).tolist()
        param = torch.zeros(100).as_strided(shape, strides)
        try:
            tx.step([torch.ones(shape)], tx.init([param]), [param], inplace=True)
            refusal = False
        except ValueError as error:
            refusal = "a view that overlaps itself" in str(error)
            assert param.eq(0).all()
        assert refusal == repeated(shape, strides), (shape, strides)
        seen[refusal] += 1
    assert min(seen.values()) > 30


# ---- words --------------------------------------------------------------------------------------


def bad_class():
    params = [torch.ones(2, requires_grad=True) for _ in range(5)]
    groups = [{"params": params[:1]}, {"params": params[1:]}]
    optimizer = optcore.Adam(groups, use_accelerated_op=True)
    for p in params:
        p.grad = torch.ones_like(p)
    params[2].grad = None  # the numbers are those of the group, whatever has a gradient
    optimizer.step()
    return params, optimizer


def test_a_class_names_itself_the_parameter_and_the_buffer():
    params, optimizer = bad_class()
    optimizer.state[params[4]]["exp_avg"] = torch._neg_view(torch.ones(2))
    message = (
        "Adam: expected tensors that hold their values, got a lazily negated view, at parameter 3 "
        "of group 1, exp_avg; call .resolve_neg()"
    )
    refused(optimizer.step, message, params, error=TypeError)


def test_a_repeated_step_says_the_same():
    params, optimizer = bad_class()
    optimizer.state[params[3]]["exp_avg_sq"].set_(params[3].detach())
    message = (
        "got parameter 2 of group 1 over parameter 2 of group 1, exp_avg_sq; clone one of them"
    )
    refused(optimizer.step, f"Adam: expected tensors that do not share memory, {message}", params)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_function_names_itself_the_path_and_the_buffer(inplace):
    params = {"w": torch.ones(2), "net": [torch.ones(3), torch.ones(3, dtype=F32)]}
    tx = optcore.adamw(use_accelerated_op=True)
    state = tx.init(params)
    state[0].nu["net"][1].set_(torch.ones(5, dtype=F32))
    message = "adamw: expected a tensor like f32[3], got f32[5], at params['net'][1], nu"
    refused(lambda: tx.step(params, state, params, inplace=inplace), message, params, state)


def test_an_update_names_the_transformation_the_path_and_the_buffer():
    params = {"w": torch.ones(2), "net": [torch.ones(3), torch.ones(3)]}
    tx = optcore.adamw(use_accelerated_op=True)
    state = tx.init(params)
    state[0].nu["net"][1].set_(torch._neg_view(torch.ones(3)).double()[:2])
    message = "scale_by_adam: expected a tensor like f64[3], got f64[2], at ['net'][1], nu"
    refused(lambda: tx.update(params, state, params, inplace=True), message, params, state)


def test_a_tensor_that_is_the_whole_tree():
    w = torch.ones(2)
    tx = optcore.lion(use_accelerated_op=True)
    state = tx.init(w)
    refused(lambda: tx.step(w, state, w, inplace=True), "got params over params, grad;", w, state)
