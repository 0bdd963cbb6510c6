# SPDX-License-Identifier: Apache-2.0
"""A program in parts: a meta-network in one process, inner loops in the others.

    python -m optdist.launch --nproc 2 packages/optdist/examples/parted_program.py

A small network at worker 1 says how far to trust each training example; some labels are wrong.
Worker 0 (and workers 2, 3, ... if there are) train a line with those weights, step by step, and
look at how well it does on clean examples. The derivative of that goes back through the steps, any
order inside the process, then over the wire to the network: there, of first order. The same in one
process, to compare with, gives the same numbers.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "optdiff" / "examples"))

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, failure, folder
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optdist

HOME = 1  # the rank where the meta-network lives
STEPS, EXAMPLES, FEATURES = 5, 40, 3


class Step(NamedTuple):
    """What an outer step found."""

    loss: float  # on clean examples, after the inner loops
    norm: float  # of the meta-gradient


class Trust(nn.Module):
    """How far to trust each example, from its input and label; lives at one worker."""

    def __init__(self, lr: float, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
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


def examples(seed: int, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw training examples, three in ten with a wrong label, and clean ones."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    x = torch.randn(2 * EXAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    y = x.sum(dim=1)
    wrong = torch.rand(EXAMPLES, generator=generator) < 0.3
    given = torch.where(wrong, -y[:EXAMPLES], y[:EXAMPLES])
    return x[:EXAMPLES], given, x[EXAMPLES:], y[EXAMPLES:]


def outer_step(home: optdist.rpc.RRef, seed: int, step: int) -> Step:
    """One outer step over all parts."""
    x, y, *clean = examples(seed, step)
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
    return Step(loss.item(), norm)


def alone(steps: int, lr: float, seed: int, loops: int, done: Callable[[str], None]) -> list[Step]:
    """The same in one process, to compare with."""
    trust, found = Trust(lr, seed), []
    for step in range(steps):
        x, y, *clean = examples(seed, step)
        chunks = (t.tensor_split(loops) for t in (trust(x, y), x, y))
        loss = torch.stack([inner_loop(*chunk, *clean) for chunk in zip(*chunks)]).mean()
        gradients = torch.autograd.grad(loss, list(trust.parameters()))
        for param, gradient in zip(trust.parameters(), gradients, strict=True):
            param.grad = gradient
        trust.outer.step()
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        found.append(Step(loss.item(), norm))
        done(f"clean loss {found[-1].loss:.4f}")
    return found


def trusted(home: optdist.rpc.RRef, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """How far examples that no step has seen are trusted: those labelled right, and wrong."""
    x, y, *_ = examples(seed, step)
    (weights,) = optdist.remote_sync_call(weights_of, args=(home, x, y), partitioner=HOME)
    wrong = (y - x.sum(dim=1)).abs() > 1e-9
    return weights[~wrong].detach(), weights[wrong].detach()


def in_parts(
    steps: int, lr: float, seed: int, done: Callable[[str], None]
) -> tuple[list[Step], Tensor, Tensor]:
    """Train; return what each outer step found, and how far new examples are trusted then."""
    home = optdist.rpc.remote(HOME, Trust, args=(lr, seed), timeout=60)
    found = []
    for step in range(steps):
        found.append(outer_step(home, seed, step))
        done(f"clean loss {found[-1].loss:.4f}")
    return found, *trusted(home, seed, steps)


@optdist.auto_init_rpc()
def run(steps: int, lr: float, seed: int, out: Path) -> None:
    """Train on rank 0; the other processes serve it."""
    train(steps, lr, seed, out)


@optdist.rank_zero_only
def train(steps: int, lr: float, seed: int, out: Path) -> None:
    """Train in parts and in one process; show and save what both found."""
    console, size = Console(), optdist.get_world_size()
    with Phases(console) as phases:
        done = phases.start(f"{size} processes", steps, lines=5)
        found, right, wrong = in_parts(steps, lr, seed, done)
        wanted = alone(steps, lr, seed, size - 1, phases.start("one process", steps))
    console.print(table(found, wanted))
    off = max(abs(a - b) for pair in zip(found, wanted, strict=True) for a, b in zip(*pair))
    console.print(
        f"new examples are trusted by {right.mean():.2f} (label right) and {wrong.mean():.2f} "
        f"(wrong), mean\n"
        f"clean loss {found[0].loss:.4f} -> {found[-1].loss:.4f}; one process differs by {off:.0e}",
        highlight=False,
        soft_wrap=True,
    )
    save_figure(out / "parted_program.png", found, wanted, right, wrong)
    record = {
        "settings": {"steps": steps, "lr": lr, "seed": seed},
        "workers": size,
        "parts": [step._asdict() for step in found],
        "one process": [step._asdict() for step in wanted],
        "largest_difference": off,
        "trust": {"right": right.tolist(), "wrong": wrong.tolist()},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def table(found: Sequence[Step], wanted: Sequence[Step]) -> Table:
    """Some outer steps, and how far they are from those of one process."""
    shown = Table(title="outer steps")
    for column in ("step", "clean loss", "meta-gradient", "from one process"):
        shown.add_column(column, justify="right")
    for step in sorted({*range(0, len(found), max(1, len(found) // 5)), len(found) - 1}):
        one, other = found[step], wanted[step]
        off = max(abs(a - b) for a, b in zip(one, other))
        shown.add_row(f"{step}", f"{one.loss:.4f}", f"{one.norm:.4f}", f"{off:.0e}")
    return shown


def save_figure(
    path: Path, found: Sequence[Step], wanted: Sequence[Step], right: Tensor, wrong: Tensor
) -> None:
    """Plot the clean loss by outer step both ways, and how far examples are trusted."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, trust = figure.subplots(1, 2)
    left.semilogy([step.loss for step in found], color="C0", alpha=0.4, label="in parts")
    left.semilogy([step.loss for step in wanted], "k:", alpha=0.6, label="in one process")
    joined = max(1, len(found) // 10)  # every step has other examples
    means = torch.tensor([step.loss for step in found]).unfold(0, joined, 1).mean(1)
    steps = range(joined - 1, len(found))
    left.semilogy(steps, means, "C0", linewidth=2.5, label=f"in parts, mean of {joined} steps")
    left.set(xlabel="outer step", ylabel="mean squared error", title="loss on clean examples")
    bins = torch.linspace(0, 1, 21).tolist()
    for values, name, color in ((right, "right", "C0"), (wrong, "wrong", "C3")):
        trust.hist(values.numpy(), bins, alpha=0.6, color=color, label=f"{name} label")
    trust.set(
        xlabel="trust (0 to 1)",
        ylabel="number of examples",
        title="trust in new examples after learning",
    )
    for axes in (left, trust):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 100,
    lr: Annotated[float, typer.Option(help="Learning rate of the meta-network.")] = 0.02,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Seeds the network and the examples.")
    ] = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path(
        "out/parted_program"
    ),
) -> None:
    """Learn whom to trust: a meta-network in one process, inner loops in the others."""
    started = time.perf_counter()
    if not 0 < lr < math.inf:
        raise failure(f"parted_program: expected a number above 0, got {lr}, at --lr; change it")
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise failure(
            "parted_program: expected at least 2 workers, got 1; start it with "
            "`python -m optdist.launch --nproc 2`"
        )
    folder("parted_program", out)
    if smoke:
        steps = 10
    run(steps, lr, seed, out)
    if os.environ.get("RANK", "0") == "0":
        took, size = time.perf_counter() - started, optdist.get_world_size()
        typer.echo(f"{took:.0f} s with {size} workers; plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
