# SPDX-License-Identifier: Apache-2.0
"""On a GPU: the numbers of the CPU, streams, graphs, no waiting. Skipped where there is none."""

import pytest
import torch

import optcore
import optcore_accel

CHAINS = {
    "momentum": lambda rate: optcore.sgd(rate, momentum=0.9, use_accelerated_op=True),
    "adamw": lambda rate: optcore.adamw(rate, use_accelerated_op=True),
    "amsgrad": lambda rate: optcore.amsgrad(rate, use_accelerated_op=True),
    "rmsprop": lambda rate: optcore.rmsprop(rate, momentum=0.9, use_accelerated_op=True),
    "adagrad": lambda rate: optcore.adagrad(rate, use_accelerated_op=True),
    "lion": lambda rate: optcore.lion(rate, use_accelerated_op=True),
}
SIZES = [0, 1, 3, 1023, 1025, 8193, 100_003]


def starts(device, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in SIZES]


def everything(name, device, dtype, inplace):
    """New parameters, and out of place derivatives in them, in the gradients and in the rate.

    What goes in is made on the CPU: where a derivative is a small difference, what another cosine
    rounds otherwise would show.
    """
    rate = torch.tensor(0.1, dtype=torch.float64, device=device, requires_grad=True)
    params = [w.requires_grad_(not inplace) for w in starts(device, dtype)]
    grads = [w.cos().to(device).requires_grad_(not inplace) for w in starts("cpu", dtype)]
    tx = CHAINS[name](0.1 if inplace else rate)
    moved, _ = tx.step(grads, tx.init(params), params, inplace=inplace)
    found = list(moved)
    if not inplace:
        total = sum(p.double().sin().sum() for p in moved)
        found += torch.autograd.grad(total, [*params, *grads, rate])
    return [x.detach().cpu() for x in found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_numbers_are_those_of_the_cpu(name, inplace, dtype, cuda):
    ours, theirs = (everything(name, d, dtype, inplace) for d in (cuda, torch.device("cpu")))
    tolerance = 1e-11 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", CHAINS)
def test_nothing_waits_for_the_gpu(name, cuda):
    rate = torch.tensor(0.1, dtype=torch.float64, device=cuda, requires_grad=True)
    params, grads = starts(cuda), [w.cos() for w in starts(cuda)]
    tx = CHAINS[name](rate)
    state = tx.init(params)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tx.step(grads, state, params, inplace=True)
        factor = torch.ones((), dtype=torch.float64, device=cuda, requires_grad=True)
        moved, _ = tx.step([g * factor for g in grads], state, params, inplace=False)
        torch.autograd.grad(sum(p.sum() for p in moved), [factor, rate])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_in_place_can_be_captured(cuda):
    params, grads = starts(cuda, torch.float32), [w.cos() for w in starts(cuda, torch.float32)]
    tx = optcore.sgd(0.1, momentum=0.9, use_accelerated_op=True)
    state = tx.init(params)
    expected, expected_state = [p.clone() for p in params], optcore.map_tensors(torch.clone, state)
    tx.step(grads, tx.init(params), [p.clone() for p in params], inplace=True)  # loads the kernel
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tx.step(grads, state, params, inplace=True)
    for _ in range(3):
        graph.replay()
        expected, expected_state = tx.step(grads, expected_state, expected, inplace=True)
    torch.cuda.synchronize()
    assert all(map(torch.equal, params, expected))


def test_a_step_runs_on_the_current_stream(cuda):
    params = [torch.zeros(1 << 24, device=cuda)]
    tx = optcore.sgd(1.0, momentum=0.9, use_accelerated_op=True)
    state, grad = tx.init(params), torch.zeros_like(params[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        grad.fill_(1.0)  # a launch on another stream would come before this
        tx.step([grad], state, params, inplace=True)
    torch.cuda.current_stream().wait_stream(stream)
    assert params[0].eq(-1).all()


def test_a_second_gpu(cuda):
    others = torch.cuda.device_count()
    if others < 2:
        pytest.skip("one GPU only")
    other = torch.device("cuda", 1)
    ours, theirs = (everything("adamw", d, torch.float64, False) for d in (other, cuda))
    assert all(map(torch.equal, ours, theirs))
    assert torch.cuda.current_device() == 0


def test_tensors_of_two_devices_take_a_call_each(cuda):
    params = [torch.ones(3, device=cuda), torch.ones(3)]
    grads = [torch.ones(3, device=cuda), torch.ones(3)]
    tx = optcore.adam(0.1, use_accelerated_op=True)
    moved, _ = tx.step(grads, tx.init(params), params, inplace=True)
    torch.testing.assert_close(moved[0].cpu(), moved[1])


def test_a_scalar_of_another_device_is_refused(cuda):
    tx = optcore.adam(torch.tensor(0.1, device=cuda), use_accelerated_op=True)
    params = [torch.ones(3)]
    with pytest.raises(ValueError, match="expected a scalar on the device of the tensors"):
        tx.step([torch.ones(3)], tx.init(params), params, inplace=True)
    assert params[0].eq(1).all()


def test_status_counts_gpus(cuda):
    status = optcore_accel.status()["cuda"]
    assert status.available
    assert status.detail.startswith(str(torch.cuda.device_count()))
    assert optcore_accel.is_available(cuda)
    assert not optcore_accel.is_available("cuda:99")
