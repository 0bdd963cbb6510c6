# SPDX-License-Identifier: Apache-2.0
"""``python -m optviz example``: draw the meta-graph of a small program."""

from __future__ import annotations

from pathlib import Path

import torch

import optviz

try:
    import typer
except ModuleNotFoundError as error:
    raise SystemExit(
        "python -m optviz: typer is not installed; pip install 'optviz[cli]'"
    ) from error

app = typer.Typer(add_completion=False, help="Draw autograd graphs of bilevel programs.")


@app.callback()
def main() -> None:
    """Draw autograd graphs of bilevel programs."""


@app.command()
def example(out: Path = Path("."), steps: int = 3, folded: bool = True) -> None:
    """Write maml.svg and maml.html: MAML by Adam, with the meta-gradients measured.

    Args:
        out: The folder, made if it is missing.
        steps: Inner steps.
        folded: Show repeated steps once.
    """
    if steps < 1:
        raise typer.BadParameter(f"expected at least 1 inner step, got {steps}")
    graph = maml(steps, folded)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("maml.svg", "maml.html"):
        typer.echo(graph.save(out / name))


def maml(steps: int, fold: bool = True) -> optviz.Graph:
    """The graph of an outer loss after some steps of Adam on weighted examples."""
    try:
        import optdiff
    except ModuleNotFoundError as error:
        raise SystemExit(
            "python -m optviz example: optdiff is not installed; pip install 'optviz[example]'"
        ) from error
    torch.manual_seed(0)
    x, y, x_val, y_val = (torch.randn(16, width) for width in (4, 1, 4, 1))
    phi = torch.zeros(16, 1, requires_grad=True)
    model = torch.nn.Linear(4, 1)
    inputs = [model.state_dict(keep_vars=True), {"phi": phi}]
    inner = optviz.instrument(optdiff.MetaAdam(model, lr=0.1))
    for _ in range(steps):
        inner.step((phi.sigmoid() * (model(x) - y) ** 2).mean())
    with optviz.scope("outer loss"):
        loss = ((model(x_val) - y_val) ** 2).mean()
    return optviz.flow(optviz.draw({"loss": loss}, inputs, fold=fold), loss)


if __name__ == "__main__":
    app()
