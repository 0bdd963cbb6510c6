# SPDX-License-Identifier: Apache-2.0
"""Kernels of an installed package are found, run instead of the formula, or missed with a reason.

Every program runs in a process of its own, for what is found is remembered.
"""

import json
import subprocess
import sys
import textwrap

import pytest

KERNELS = '''
"""Kernels whose updates are three times those of the formula, to be told from it."""

import torch

CALLS = []


def scale_by_adam(grads, mu, nu, counts, *, inplace, b1, b2, eps, eps_root):
    CALLS.append(["scale_by_adam", len(grads), inplace, [int(c) for c in counts]])
    mu = [b1 * m + (1 - b1) * g for m, g in zip(mu, grads)]
    nu = [b2 * n + (1 - b2) * g * g for n, g in zip(nu, grads)]
    first, second = ([1 - b**c.double() for c in counts] for b in (b1, b2))
    root = [(n / c + eps_root).sqrt() + eps for n, c in zip(nu, second)]
    return [3 * m / (c * r) for m, c, r in zip(mu, first, root)], mu, nu


def scale_by_amsgrad(grads, mu, nu, nu_max, counts, *, inplace, b1, b2, eps, eps_root):
    plain, mu, nu = scale_by_adam(grads, mu, nu, counts, inplace=inplace, b1=b1, b2=b2, eps=eps,
                                  eps_root=eps_root)
    nu_max = [a.maximum(b) for a, b in zip(nu_max, nu)]
    root = [(n / (1 - b2**c.double()) + eps_root).sqrt() + eps for n, c in zip(nu_max, counts)]
    step = [3 * m / ((1 - b1**c.double()) * r) for m, c, r in zip(mu, counts, root)]
    return step, mu, nu, nu_max


def trace(grads, old, counts=None, *, inplace, decay, nesterov, dampening=0.0):
    CALLS.append(["trace", len(grads), inplace, None])
    if counts:
        share = [torch.where(c > 1, 1.0 - dampening, 1.0) for c in counts]
        grads = [g * s for g, s in zip(grads, share)]
    new = [decay * b + g for b, g in zip(old, grads)]
    return [3 * (g + decay * b if nesterov else b) for b, g in zip(new, grads)], new


def scale_by_rms(grads, nu, *, inplace, decay, eps, eps_root):
    nu = [decay * n + (1 - decay) * g * g for n, g in zip(nu, grads)]
    return [3 * g / ((n + eps_root).sqrt() + eps) for g, n in zip(grads, nu)], nu


def scale_by_stddev(grads, mu, nu, *, inplace, decay, eps, eps_root):
    mu = [decay * m + (1 - decay) * g for m, g in zip(mu, grads)]
    nu = [decay * n + (1 - decay) * g * g for n, g in zip(nu, grads)]
    root = [(n - m * m + eps_root).sqrt() + eps for n, m in zip(nu, mu)]
    return [3 * g / r for g, r in zip(grads, root)], mu, nu


def scale_by_rss(grads, total, counts=None, *, inplace, eps, eps_root, lr_decay=0.0):
    total = [t + g * g for t, g in zip(total, grads)]
    steps = [3 * g / ((t + eps_root).sqrt() + eps) for g, t in zip(grads, total)]
    if counts:
        steps = [s / (1 + (c - 1) * lr_decay) for s, c in zip(steps, counts)]
    return steps, total


def scale_by_lion(grads, mu, *, inplace, b1, b2):
    steps = [3 * (b1 * m + (1 - b1) * g).sign() for m, g in zip(mu, grads)]
    return steps, [b2 * m + (1 - b2) * g for m, g in zip(mu, grads)]


OPS = {f.__name__: f for f in (scale_by_adam, scale_by_amsgrad, trace, scale_by_rms,
                               scale_by_stddev, scale_by_rss, scale_by_lion)}
FEW = {"trace": trace}
'''
PRELUDE = """
import importlib.metadata, json, sys, warnings
warnings.simplefilter("error")
every = importlib.metadata.entry_points
def entry_points(**which):  # whatever else is installed here
    return importlib.metadata.EntryPoints(e for e in every(**which) if e.dist.name[:4] == "fake")
importlib.metadata.entry_points = entry_points
import torch
torch.set_default_dtype(torch.float64)
import optcore
def reason(build, *args, **kwargs):
    try:
        build(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


@pytest.fixture
def python(tmp_path):
    def install(folder, target, name="fake-kernels"):
        info = tmp_path / folder / f"{name.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[optcore.kernels]\naccel = {target}\n")
        (tmp_path / folder / "fake_kernels.py").write_text(KERNELS)
        return str(tmp_path / folder)

    def run(program):
        code = PRELUDE + textwrap.dedent(program)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    run.install = install
    return run


def test_what_is_missing_is_said_with_its_reason(python):
    folders = {
        "absent": python.install("absent", "fake_absent:OPS"),
        "attribute": python.install("attribute", "fake_kernels:NOTHING"),
        "type": python.install("type", "fake_kernels:CALLS"),
        "few": python.install("few", "fake_kernels:FEW"),
        "second": python.install("second", "fake_kernels:OPS", "fake-second"),
    }
    missing, reasons = python(
        f"""
        names = ["sgd", "adam", "adamw", "amsgrad", "rmsprop", "adagrad", "lion"]
        missing = [reason(getattr(optcore, n), use_accelerated_op=True) for n in names]
        missing.append(reason(optcore.Adam, [torch.ones(1)], use_accelerated_op=True))
        missing.append(reason(optcore.scale_by_adam, use_accelerated_op=True))
        group = {{"params": [torch.ones(1)], "use_accelerated_op": True}}
        missing.append(reason(optcore.Lion([torch.ones(1)]).add_param_group, group))
        missing.append(reason(optcore.adam, use_accelerated_op=1))
        missing.append(optcore.kernels_status())

        folders, found = {folders!r}, []
        for name in ["absent", "attribute", "type"]:
            sys.path.insert(0, folders[name])
            found.append(reason(optcore.adam, use_accelerated_op=True))
            assert optcore.kernels_status().reason in found[-1]
            sys.path.remove(folders[name])
        sys.path[:0] = [folders["few"], folders["second"]]
        found.append(reason(optcore.adam, use_accelerated_op=True))
        sys.path.remove(folders["second"])
        found.append(reason(optcore.adam, use_accelerated_op=True))
        found.append(reason(optcore.sgd, use_accelerated_op=True))
        found.append(optcore.kernels_status())
        print(json.dumps([missing, found]))
        """
    )
    names = ["sgd", "adam", "adamw", "amsgrad", "rmsprop", "adagrad", "lion", "adam"]
    names += ["scale_by_adam", "lion"]
    reason = "optcore-accel is not installed; pip install optcore-accel"
    expected = [f"ImportError: {name}(use_accelerated_op=True): {reason}" for name in names]
    wrong = "TypeError: adam: expected use_accelerated_op as a bool, got int"
    assert missing == [*expected, wrong, [None, [], reason]]
    asked = "adam(use_accelerated_op=True): "
    assert reasons == [
        f"ImportError: {asked}fake-kernels 1.2 does not load: No module named 'fake_absent'",
        f"ImportError: {asked}fake-kernels 1.2 does not load: module 'fake_kernels' has no "
        "attribute 'NOTHING'",
        f"ImportError: {asked}fake-kernels 1.2: expected fake_kernels:CALLS to be a mapping of "
        "functions, got list",
        f"ImportError: {asked}expected one package with kernels, got ['fake-kernels 1.2', "
        "'fake-second 1.2']; uninstall all but one",
        f"NotImplementedError: {asked}expected a kernel for scale_by_adam, got ['trace'] from "
        "fake-kernels 1.2; upgrade it, or drop use_accelerated_op",
        "NotImplementedError: sgd(use_accelerated_op=True): expected a kernel for step, got "
        "['trace'] from fake-kernels 1.2; upgrade it, or drop use_accelerated_op",
        ["fake-kernels 1.2", ["trace"], None],
    ]


def test_kernels_run_in_the_place_of_the_formulas(python):
    folder = python.install("good", "fake_kernels:OPS")
    calls = python(
        f"""
        import pickle
        sys.path.insert(0, {folder!r})
        close = torch.testing.assert_close
        cases = [
            (optcore.sgd, dict(momentum=0.9)),
            (optcore.sgd, dict(momentum=0.9, nesterov=True, weight_decay=0.1)),
            (optcore.sgd, dict(momentum=0.9, dampening=0.3, maximize=True)),
            (optcore.adam, dict(weight_decay=0.1)),
            (optcore.adam, dict(eps_root=0.1, eps={{"w": 0.1, "b": 0.2, "none": 0.3}})),
            (optcore.adamw, dict(weight_decay=0.0)),  # else the decay stands beside the kernel
            (optcore.amsgrad, {{}}),
            (optcore.rmsprop, dict(alpha=0.8)),
            (optcore.rmsprop, dict(centered=True)),
            (optcore.adagrad, {{}}),
            (optcore.adagrad, dict(lr_decay=0.1)),
            (optcore.lion, dict(weight_decay=0.0)),
        ]
        params = {{"w": torch.randn(3, 2), "b": torch.randn(2), "none": torch.ones(1)}}

        def steps(tx, inplace):
            torch.manual_seed(0)
            state, out = tx.init(params), []
            for _ in range(3):
                grads = {{"w": torch.randn(3, 2), "b": torch.randn(2), "none": None}}
                kept = {{k: g if g is None else g.clone() for k, g in grads.items()}}
                update, state = tx.update(grads, state, params, inplace=inplace)
                assert all(torch.equal(grads[k], kept[k]) for k in "wb")
                out.append([update["w"], update["b"]])
            assert update["none"] is None
            return out, state

        for factory, options in cases:
            plain = {{"lr": 0.3, **options}}
            options = {{"lr": 0.1, **options}}
            fast = factory(**options, use_accelerated_op=True)
            fast = pickle.loads(pickle.dumps(fast))
            assert fast == factory(**options, use_accelerated_op=True) != factory(**options)
            for inplace in (False, True):
                close(steps(fast, inplace), steps(factory(**plain), inplace))

        from fake_kernels import CALLS
        CALLS.clear()
        w = torch.nn.Parameter(torch.ones(3))
        v = torch.nn.Parameter(torch.ones(2))
        optimizer = optcore.Adam([w, v], lr=0.1, use_accelerated_op=True)
        w.grad, v.grad = torch.ones(3), torch.ones(2)
        optimizer.step()
        close(w.detach(), torch.full((3,), 0.7))
        v.grad = None
        optimizer.step()
        learned = torch.tensor(0.9, requires_grad=True)
        tx = optcore.scale_by_adam(learned, use_accelerated_op=True)
        start = [torch.ones(2)]
        state = tx.init(start)
        for _ in range(2):
            updates, state = tx.update([torch.tensor([1.0, 2.0]) + state[0][0]], state)
        assert torch.autograd.grad(updates[0].sum(), learned)[0].isfinite()
        tree = optcore.scale_by_adam({{"a": 0.5, "b": 0.9}}, use_accelerated_op=True)
        start = {{"a": torch.ones(2), "b": torch.ones(3)}}
        tree.update(start, tree.init(start))
        mixed = optcore.scale_by_adam(use_accelerated_op=True)
        start = [torch.ones(2), torch.ones(2, dtype=torch.float32), torch.ones(1)]
        mixed.update(start, mixed.init(start))
        refused = reason(optcore.amsgrad, correct_max=True, use_accelerated_op=True)
        print(json.dumps([CALLS, optcore.kernels_status().reason, refused]))
        """
    )
    assert calls == [
        [
            ["scale_by_adam", 2, True, [1, 1]],
            ["scale_by_adam", 1, True, [2]],
            ["scale_by_adam", 1, False, [1]],
            ["scale_by_adam", 1, False, [2]],
            ["scale_by_adam", 1, True, [1]],  # leaf by leaf where hyperparameters differ
            ["scale_by_adam", 1, True, [1]],
            ["scale_by_adam", 2, True, [1, 1]],  # those of one dtype together
            ["scale_by_adam", 1, True, [1]],
        ],
        None,
        "ValueError: amsgrad: expected correct_max=False with use_accelerated_op=True, "
        "got True; the kernel has torch.optim's rule only",
    ]
