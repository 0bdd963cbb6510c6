# SPDX-License-Identifier: Apache-2.0
r"""Meta-gradient graphs: of MAML on three tasks, of a long inner loop, and of programs with a cut.

    python packages/optviz/examples/meta_graph.py

MAML (Finn et al., 2017, arXiv:1703.03400, section 2.2) adapts initial weights :math:`\theta` to
each task by a step of gradient descent. By the chain rule its meta-gradient has two parts,

.. math::
    \nabla_\theta L_i(\theta - \alpha\nabla l_i(\theta)) =
    \nabla L_i(\theta_i') - \alpha \nabla^2 l_i(\theta)\, \nabla L_i(\theta_i'),

which arrive at :math:`\theta` by two ways of the graph: past the inner gradient, and through it.
`optviz.flow` measures both. The same is done for twenty steps of Adam, drawn as one; and each of
six ways to lose a meta-gradient is found by `optviz.why_no_grad`, with its line. Pictures are SVG,
pages HTML, by optviz's own layout; with Graphviz's program `dot` there is a PNG of the first graph
too. Needs optdiff, matplotlib, rich and typer.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from broken_steps import STEPS, Step
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import optdiff
import optviz

INNER_LR, POINTS, INPUTS = 0.1, 16, 4
TASKS = 3
Task = tuple[Tensor, Tensor, Tensor, Tensor]  # inputs and targets: to adapt to, to be judged by


class Drawn(NamedTuple):
    """A graph with its measured meta-gradient, and the gradient itself."""

    graph: optviz.Graph
    gradient: Tensor


def make_task(scale: float, generator: torch.Generator) -> Task:
    """A linear regression; the scale of its inputs decides how sharply it bends."""
    truth = torch.randn(INPUTS, 1, generator=generator, dtype=torch.float64)
    x, x_val = (
        scale * torch.randn(POINTS, INPUTS, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return x, x @ truth, x_val, x_val @ truth


def maml(tasks: list[Task]) -> Drawn:
    """The mean query loss of some tasks after a step each, from the same weights."""
    model = nn.Linear(INPUTS, 1, bias=False, dtype=torch.float64)
    theta = model.weight
    start = optdiff.extract_state_dict(model)
    losses = []
    with optviz.record():
        for number, (x, y, x_val, y_val) in enumerate(tasks, 1):
            with optviz.scope(f"task {number}"):
                inner = optviz.instrument(optdiff.MetaSGD(model, lr=INNER_LR))
                inner.step((model(x) - y).square().mean())
                with optviz.scope("query loss"):
                    losses.append((model(x_val) - y_val).square().mean())
            optdiff.recover_state_dict(model, start)
        loss = torch.stack(losses).mean()
    (gradient,) = torch.autograd.grad(loss, theta, retain_graph=True)
    return Drawn(optviz.flow(optviz.draw({"loss": loss}, {"theta": theta}), loss), gradient)


def parts(graph: optviz.Graph, name: str) -> dict[str, dict[str, float]]:
    """Norms of what arrives at a leaf, by outermost scope: past the inner gradient, or through."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"past": 0.0, "through": 0.0})
    for edge in graph.edges:
        target = graph.nodes[edge.target]
        if graph.nodes[edge.source].name == name and target.path:
            way = "past" if target.path[-1] == "apply" else "through"
            found[target.path[0]][way] = (found[target.path[0]][way] ** 2 + edge.norm**2) ** 0.5
    return dict(found)


def long_loop(task: Task, steps: int) -> Drawn:
    """An outer loss after steps of Adam on an inner loss whose examples have weights."""
    x, y, x_val, y_val = task
    phi = torch.zeros(POINTS, 1, dtype=torch.float64, requires_grad=True)
    model = nn.Linear(INPUTS, 1, bias=False, dtype=torch.float64)
    names = {"phi": phi, "theta": model.weight}
    with optviz.record():
        inner = optviz.instrument(optdiff.MetaAdam(model, lr=0.02))
        for _ in range(steps):
            inner.step((phi.sigmoid() * (model(x) - y).square()).mean())
        with optviz.scope("outer loss"):
            loss = (model(x_val) - y_val).square().mean()
    (gradient,) = torch.autograd.grad(loss, phi, retain_graph=True)
    return Drawn(optviz.flow(optviz.draw({"loss": loss}, names), loss), gradient)


class Found(NamedTuple):
    """The gradient of phi in a program, if there is one, and why not."""

    norm: float | None
    answer: optviz.Answer
    graph: optviz.Graph


def ask(step: Step, task: Task, steps: int = 2) -> Found:
    """Run an inner loop of such steps and ask for its meta-gradient."""
    x, y, x_val, y_val = task
    phi = torch.zeros(POINTS, 1, dtype=torch.float64, requires_grad=True)
    w = torch.zeros(INPUTS, 1, dtype=torch.float64, requires_grad=True)
    start = w
    with optviz.record():
        for number in range(1, steps + 1):
            with optviz.scope(f"step {number}"):
                w = step(w, phi, x, y)
        with optviz.scope("outer loss"):
            loss = (x_val @ w - y_val).square().mean()
        answer = optviz.why_no_grad(phi, loss)
    (gradient,) = torch.autograd.grad(loss, phi, retain_graph=True, allow_unused=True)
    norm = None if gradient is None else gradient.norm().item()
    return Found(norm, answer, optviz.draw({"loss": loss}, {"phi": phi, "start": start}))


def place(answer: optviz.Answer) -> str:
    """The file and line of a cut, without folders."""
    return Path(answer.where).name if answer.where else ""


def table(found: dict[str, Found]) -> Table:
    """A row for each program."""
    shown = Table(title="two inner steps: does a gradient reach phi?")
    for column in ("inner step", "norm of the gradient", "why_no_grad says", "at"):
        shown.add_column(column)
    for name, one in found.items():
        norm = "none" if one.norm is None else f"{one.norm:.3e}"
        shown.add_row(
            name, norm, one.answer.kind if one.answer else "nothing: a path", place(one.answer)
        )
    return shown


def save_figure(
    path: Path,
    by_task: dict[str, dict[str, float]],
    by_step: dict[str, float],
    saved: dict[str, int],
) -> None:
    """Plot both parts of MAML's meta-gradient, and gradient and memory of each step of Adam."""
    figure = Figure(figsize=(14, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    places = range(len(by_task))
    for shift, way, label in ((-0.2, "past", "past it"), (0.2, "through", "through it")):
        heights = [row[way] for row in by_task.values()]
        left.bar([one + shift for one in places], heights, 0.4, label=label)
    left.set_xticks(list(places), list(by_task))
    left.set(
        ylabel="norm of the meta-gradient", title="MAML: past the inner gradient, and through it"
    )
    left.legend()
    numbers = range(1, 1 + len(by_step))
    middle.plot(numbers, list(by_step.values()), "o-")
    middle.set(
        xlabel="inner step",
        ylabel="norm of the meta-gradient in phi",
        title="Adam: what phi gets from each step",
        ylim=(0, None),
    )
    right.bar(range(1, 1 + len(saved)), [value / 1e3 for value in saved.values()])
    right.set(
        xlabel="inner step",
        ylabel="kept for the backward pass (kB)",
        title="Adam: memory of a step",
    )
    for axes in (middle, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def run(steps: int, seed: int, out: Path) -> None:
    """Draw, ask, print and save."""
    console = Console()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    tasks = [make_task(0.5 + 0.75 * number, generator) for number in range(TASKS)]
    found: dict[str, Found] = {}
    with console.status("drawing"):
        first = maml(tasks)
        second = long_loop(tasks[1], steps)
    for name, step in track(STEPS.items(), "asking", console=console, transient=True):
        found[name] = ask(step, tasks[1])
    files = [
        graph.save(out / f"{name}.{kind}")
        for name, graph in (
            ("maml", first.graph),
            ("adam", second.graph),
            ("right", found["as it should be"].graph),
            ("broken", found["grad without create_graph"].graph),
        )
        for kind in ("svg", "html")
    ]
    if shutil.which("dot"):
        files.append(Path(first.graph.to_digraph().render(out / "maml_dot", format="png")))
        console.print("dot drew maml_dot.png")
    else:
        console.print("dot is not installed: no PNG of a graph; SVG and HTML do without it")

    by_task = parts(first.graph, "theta")
    by_step = {scope: row["through"] for scope, row in parts(second.graph, "phi").items()}
    kept = second.graph.saved_bytes(by="step")
    saved = {scope: size for scope, size in kept.items() if scope.startswith("step")}
    boxes = second.graph.to_svg().count("<rect")
    console.print(table(found))
    for scope, row in by_task.items():
        console.print(
            f"MAML, {scope}: {row['past']:.3f} past the inner gradient, "
            f"{row['through']:.3f} through it",
            highlight=False,
        )
    console.print(
        f"{steps} steps of Adam: {len(second.graph.nodes)} nodes, {boxes} boxes in the picture, "
        f"derivatives of order {second.graph.order()} inside",
        highlight=False,
    )
    save_figure(out / "meta_graph.png", by_task, by_step, saved)
    record = {
        "settings": {"steps": steps, "seed": seed},
        "maml": {"parts": by_task, "gradient": first.gradient.norm().item()},
        "adam": {
            "nodes": len(second.graph.nodes),
            "boxes": boxes,
            "order": second.graph.order(),
            "norms": by_step,
            "bytes": saved,
        },
        "programs": {
            name: {"norm": one.norm, "kind": one.answer.kind, "at": place(one.answer)}
            for name, one in found.items()
        },
        "files": [path.name for path in files],
    }
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n")


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of the long inner loop.")] = 20,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seeds tasks and weights.")] = 0,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/meta_graph"),
) -> None:
    """Draw the graphs of meta-gradients, and find where they are lost."""
    started = time.perf_counter()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # may files be made in it?
            pass
    except OSError as error:
        typer.secho(
            f"meta_graph: expected a folder to write to, got {error.strerror!r}, at {out}; "
            "change --out",
            fg=typer.colors.RED,
            err=True,
        )
        raise typer.Exit(2) from error
    run(5 if smoke else steps, seed, out)
    took = time.perf_counter() - started
    typer.echo(f"{took:.0f} s; pictures and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
