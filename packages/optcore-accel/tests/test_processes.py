# SPDX-License-Identifier: Apache-2.0
"""What is loaded, found and refused in a fresh process; threads; instruction sets."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import optcore
import optcore_accel
from optcore_accel import _cpu


def fresh(code, **environment):
    """What a new Python prints."""
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.split()


def test_optcore_loads_no_kernels_until_it_is_asked():
    code = (
        "import sys, torch, optcore\n"
        "w = torch.nn.Parameter(torch.ones(2)); w.grad = torch.ones(2)\n"
        "optcore.Adam([w]).step()\n"
        "print('optcore_accel' in sys.modules)\n"
        "optcore.Adam([w], use_accelerated_op=True).step()\n"
        "print('optcore_accel' in sys.modules, 'optcore_accel._cpu' in sys.modules)\n"
        "print('optcore_accel._cuda' in sys.modules)\n"
    )
    assert fresh(code) == ["False", "True", "True", "False"]


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="no list of what is loaded")
def test_one_openmp_runtime():
    code = (
        "import torch, optcore_accel._cpu, re\n"
        "maps = open('/proc/self/maps').read()\n"
        "print(len(set(re.findall(r'\\S*lib[gi]?omp[^/\\s]*\\.so\\S*', maps))))\n"
    )
    assert fresh(code) == ["1"]


def test_the_cuda_module_loads_where_no_gpu_is_and_says_so():
    code = (
        "import optcore_accel\n"
        "s = optcore_accel.status()['cuda']\n"
        "print(s.loaded == s.built, s.available, bool(s.reason))\n"
        "print(optcore_accel.is_available('cuda'), optcore_accel.is_available('meta'))\n"
    )
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    assert fresh(code, **hidden) == ["True", "False", "True", "False", "False"]


def test_tables_of_functions_and_methods_agree():
    """The two ways of reading tensors take and refuse the same."""
    code = (
        "import torch, hashlib, optcore\n"
        "from optcore_accel import _cpu\n"
        "{forget}\n"
        "torch.manual_seed(0)\n"
        "h = hashlib.sha256()\n"
        "for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):\n"
        "    params = [torch.randn(s).to(dtype) for s in (0, 1, 7, 1025)]\n"
        "    params += [torch.randn(4, 6).to(dtype).T, torch.randn(9).to(dtype)[2:]]\n"
        "    grads = [p.sin() for p in params]\n"
        "    tx = optcore.adamw(use_accelerated_op=True)\n"
        "    for inplace in (False, True):\n"
        "        params, _ = tx.step(grads, tx.init(params), params, inplace=inplace)\n"
        "    for p in params:\n"
        "        h.update(p.double().contiguous().numpy().tobytes())\n"
        "sub = torch.ones(3).as_subclass(type('T', (torch.Tensor,), {{}}))\n"
        "m = torch.zeros(4, 6)\n"
        "for bad in (torch.ones(3, device='meta'), torch.ones(3).to(torch.float8_e5m2),\n"
        "            sub, torch.zeros(1).expand(3), m[:, 0], m[:, 5], m[3], m.T[::2]):\n"
        "    try:\n"
        "        pair, grads = [m[1:, 1:4], bad], [torch.zeros(3, 3), torch.zeros(bad.shape)]\n"
        "        ready = _cpu.prepare(0, [1.0, 0.0, 0.0, 1.0], pair, grads, [])\n"
        "        _cpu.refuse_overlaps([ready])\n"
        "        h.update(b'accepted')\n"
        "    except (TypeError, ValueError) as error:\n"
        "        h.update(str(error).encode())\n"
        "print(h.hexdigest())\n"
    )
    ways = ["print(end='')", "_cpu.forget_exchange()\nassert not _cpu.uses_exchange()"]
    assert fresh(code.format(forget=ways[0])) == fresh(code.format(forget=ways[1]))


def test_a_device_without_kernels_is_refused():
    tx = optcore.adam(use_accelerated_op=True)
    params = [torch.zeros(3, device="meta")]
    with pytest.raises(RuntimeError, match=r"expected tensors on cpu or cuda, got meta"):
        tx.step([torch.ones(3, device="meta")], tx.init(params), params, inplace=False)


def test_status_names_the_instruction_set():
    status = optcore_accel.status()["cpu"]
    assert status == (True, True, True, None, status.detail)
    assert status.detail in _cpu.instruction_sets().split()
    assert not _cpu.choose_instruction_set("none such")


# ---- the same numbers everywhere ----------------------------------------------------------------

CHAINS = [
    lambda rate: optcore.sgd(rate, momentum=0.9, nesterov=True, use_accelerated_op=True),
    lambda rate: optcore.adamw(rate, use_accelerated_op=True),
    lambda rate: optcore.amsgrad(rate, use_accelerated_op=True),
    lambda rate: optcore.rmsprop(rate, momentum=0.9, centered=True, use_accelerated_op=True),
    lambda rate: optcore.adagrad(rate, use_accelerated_op=True),
    lambda rate: optcore.lion(rate, use_accelerated_op=True),
]


def numbers(dtype, size, rate=0.1):
    """Steps in place and out of place of every rule, and the derivatives of the latter."""
    found = []
    generator = torch.Generator().manual_seed(1)
    for make in CHAINS:
        w, g = (torch.randn(size, generator=generator).to(dtype) for _ in range(2))
        tx = make(rate)
        moved, state = tx.step([g], tx.init([w]), [w.clone()], inplace=True)
        w, g = w.requires_grad_(), g.requires_grad_()
        state = optcore.map_tensors(torch.clone, state)
        again, _ = tx.step([g], state, [w], inplace=False)
        found += [*moved, *again, *torch.autograd.grad(again[0].float().sin().sum(), [w, g])]
    return [x.detach() for x in found]


@pytest.fixture
def best():
    name = _cpu.instruction_set()
    yield name
    assert _cpu.choose_instruction_set(name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", _cpu.instruction_sets().split())
def test_every_instruction_set_gives_the_same_bits(name, dtype, best):
    expected = numbers(dtype, 3001)
    assert _cpu.choose_instruction_set(name)
    assert all(map(torch.equal, numbers(dtype, 3001), expected))


def test_any_number_of_threads_gives_the_same_bits():
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        rate = torch.tensor(0.1, requires_grad=True)
        w = torch.linspace(-1, 1, 200_001).requires_grad_()
        tx = optcore.adamw(rate, use_accelerated_op=True)
        moved, _ = tx.step([w.detach().sin()], tx.init([w]), [w], inplace=False)
        slopes = torch.autograd.grad(moved, [w, rate], [torch.ones_like(w)])
        found.append([*numbers(torch.float32, 200_001), *moved, *slopes])
    assert all(map(torch.equal, *found))


def test_threads_of_python_step_side_by_side():
    starts = [torch.linspace(-1, 1, 70_001) * (k + 1) for k in range(4)]

    def walk(start, results):
        w = start.clone().requires_grad_()
        optimizer = optcore.AdamW([w], lr=0.01, use_accelerated_op=True)
        for _ in range(10):
            w.grad = w.detach().sin()
            optimizer.step()
        results.append(w.detach())

    alone, together = [[] for _ in starts], [[] for _ in starts]
    for start, results in zip(starts, alone, strict=True):
        walk(start, results)
    threads = [
        threading.Thread(target=walk, args=pair) for pair in zip(starts, together, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, together, strict=True))
