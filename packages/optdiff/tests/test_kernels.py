# SPDX-License-Identifier: Apache-2.0
"""Meta classes run the kernels of an installed package, or say that there are none."""

import json
import subprocess
import sys

KERNELS = """
def scale_by_adam(grads, mu, nu, counts, *, inplace, b1, b2, eps, eps_root):
    assert not inplace
    return [7 * g for g in grads], mu, nu


OPS = {"scale_by_adam": scale_by_adam}
"""
PROGRAM = """
import importlib.metadata, json, sys
every = importlib.metadata.entry_points
def entry_points(**which):  # whatever else is installed here
    return importlib.metadata.EntryPoints(e for e in every(**which) if e.dist.name == "fake")
importlib.metadata.entry_points = entry_points
import torch, optdiff
net = torch.nn.Linear(1, 1, bias=False)
reasons = []
for name in ["SGD", "Adam", "AdamW", "AMSGrad", "RMSprop", "Adagrad", "Lion"]:
    try:
        getattr(optdiff, "Meta" + name)(net, use_accelerated_op=True)
    except ImportError as error:
        reasons.append(str(error))
sys.path.insert(0, sys.argv[1])
start = net.weight
optimizer = optdiff.MetaAdam(net, lr=0.5, use_accelerated_op=True)
optimizer.step((net.weight**2).sum())
derivative = torch.autograd.grad(net.weight.sum(), start)[0]
print(json.dumps([reasons, derivative.item()]))
"""


def test_meta_classes_have_the_switch(tmp_path):
    (tmp_path / "fake-1.dist-info").mkdir()
    (tmp_path / "fake-1.dist-info" / "METADATA").write_text("Name: fake\nVersion: 1\n")
    (tmp_path / "fake-1.dist-info" / "entry_points.txt").write_text(
        "[optcore.kernels]\naccel = fake_kernels:OPS\n"
    )
    (tmp_path / "fake_kernels.py").write_text(KERNELS)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    reasons, derivative = json.loads(done.stdout)
    names = ["sgd", "adam", "adamw", "amsgrad", "rmsprop", "adagrad", "lion"]
    assert reasons == [
        f"{name}(use_accelerated_op=True): optcore-accel is not installed; pip install "
        "optcore-accel"
        for name in names
    ]
    assert derivative == 1 - 0.5 * 7 * 2  # w' = w - lr * 7 * dw²/dw
