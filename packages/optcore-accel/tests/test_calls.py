# SPDX-License-Identifier: Apache-2.0
"""Steps in place that take several calls of kernels: all checks come before the first of them."""

import gc
import re
import weakref

import pytest
import torch

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
    message = "trace: expected tensors that hold their values, got a lazily negated view, at [1], "
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
