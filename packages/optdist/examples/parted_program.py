# SPDX-License-Identifier: Apache-2.0
"""A program in parts: a meta-network in one process, inner loops in the others.

    python -m optdist.launch --nproc 2 packages/optdist/examples/parted_program.py

A small network at worker 1 says how far to trust each training example; some labels are wrong.
Worker 0 (and workers 2, 3, ... if there are) train a line with those weights, step by step, and
look at how well it does on clean examples. The derivative of that goes back through the steps, any
order inside the process, then over the wire to the network: there, of first order.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import optdist

HOME = 1  # the rank where the meta-network lives
STEPS, EXAMPLES, FEATURES = 5, 40, 3


class Trust(nn.Module):
    """How far to trust each example, from its input and label; lives at one worker."""

    def __init__(self, lr: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(FEATURES + 1, 8), nn.Tanh(), nn.Linear(8, 1))
        self.double()
        self.outer = torch.optim.Adam(self.parameters(), lr=lr)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return a number in (0, 1) for each example."""
        return torch.sigmoid(self.net(torch.cat([x, y[:, None]], dim=1)))[:, 0]


def weights_of(home: optdist.rpc.RRef, x: Tensor, y: Tensor) -> Tensor:
    """Ask the meta-network (runs where it lives)."""
    return home.local_value()(x, y)


def learn(home: optdist.rpc.RRef, context_id: int) -> float:
    """Step with the gradient that came over the wire (runs there too); return its norm."""
    trust = home.local_value()
    found = optdist.autograd.get_gradients(context_id)
    gradients = [found[param] for param in trust.parameters()]
    for param, gradient in zip(trust.parameters(), gradients, strict=True):
        param.grad = gradient.clone()
    trust.outer.step()
    return torch.cat([gradient.flatten() for gradient in gradients]).norm().item()


def inner_loop(weights: Tensor, x: Tensor, y: Tensor, clean_x: Tensor, clean_y: Tensor) -> Tensor:
    """Train a line on weighted examples; return its loss on clean ones, differentiable."""
    line = torch.zeros(FEATURES, dtype=x.dtype, requires_grad=True)
    for _ in range(STEPS):
        loss = (weights * (x @ line - y).square()).mean()
        (gradient,) = torch.autograd.grad(loss, line, create_graph=True)
        line = line - 0.2 * gradient
    return (clean_x @ line - clean_y).square().mean()


def examples(step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw training examples, three in ten with a wrong label, and clean ones."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(2 * EXAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = x.sum(dim=1)
    wrong = torch.rand(EXAMPLES, generator=generator) < 0.3
    given = torch.where(wrong, -y[:EXAMPLES], y[:EXAMPLES])
    return x[:EXAMPLES], given, x[EXAMPLES:], y[EXAMPLES:]


def outer_step(home: optdist.rpc.RRef, step: int) -> tuple[float, float]:
    """One outer step over all parts; return the loss and the norm of the meta-gradient."""
    x, y, *clean = examples(step)
    with optdist.autograd.context() as context_id:
        (weights,) = optdist.remote_sync_call(weights_of, args=(home, x, y), partitioner=HOME)
        loops = [r for r in range(optdist.get_world_size()) if r != HOME]
        parts = [
            optdist.remote_async_call(inner_loop, args=(w, px, py, *clean), partitioner=rank)
            for rank, w, px, py in zip(
                loops, *(t.tensor_split(len(loops)) for t in (weights, x, y)), strict=True
            )
        ]
        loss = torch.stack([part.wait()[0] for part in parts]).mean()
        optdist.autograd.backward(context_id, loss)
        (norm,) = optdist.remote_sync_call(learn, args=(home, context_id), partitioner=HOME)
    return loss.item(), norm


def alone(steps: int, lr: float, loops: int) -> list[tuple[float, float]]:
    """The same in one process, to compare with."""
    trust, found = Trust(lr), []
    for step in range(steps):
        x, y, *clean = examples(step)
        chunks = (t.tensor_split(loops) for t in (trust(x, y), x, y))
        loss = torch.stack([inner_loop(*chunk, *clean) for chunk in zip(*chunks)]).mean()
        gradients = torch.autograd.grad(loss, list(trust.parameters()))
        for param, gradient in zip(trust.parameters(), gradients, strict=True):
            param.grad = gradient
        trust.outer.step()
        found.append((loss.item(), torch.cat([g.flatten() for g in gradients]).norm().item()))
    return found


@optdist.auto_init_rpc()
def run(steps: int, lr: float) -> None:
    """Train on rank 0; the other processes serve it."""
    train(steps, lr)


@optdist.rank_zero_only
def train(steps: int, lr: float) -> None:
    """Print losses, and how far they are from those of one process."""
    if optdist.get_world_size() < 2:
        raise SystemExit(
            "parted_program: expected at least 2 workers, got 1; start it with "
            "`python -m optdist.launch --nproc 2`"
        )
    home = optdist.rpc.remote(HOME, Trust, args=(lr,), timeout=60)
    found = [outer_step(home, step) for step in range(steps)]
    wanted = alone(steps, lr, optdist.get_world_size() - 1)
    for step in range(0, steps, max(1, steps // 5)):
        print(f"step {step:3}  clean loss {found[step][0]:.4f}  meta-gradient {found[step][1]:.4f}")
    off = max(abs(a - b) for pair in zip(found, wanted, strict=True) for a, b in zip(*pair))
    print(f"clean loss {found[0][0]:.4f} -> {found[-1][0]:.4f}; one process differs by {off:.0e}")


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100, help="outer steps")
    parser.add_argument("--lr", type=float, default=0.02, help="of the meta-network")
    options = parser.parse_args()
    if options.steps < 1:
        parser.error(f"expected --steps of at least 1, got {options.steps}")
    run(options.steps, options.lr)


if __name__ == "__main__":
    main()
