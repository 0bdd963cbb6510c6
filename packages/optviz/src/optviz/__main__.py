# SPDX-License-Identifier: Apache-2.0
"""``python -m optviz example``: draw the graphs of small bilevel programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
def example(
    out: Annotated[Path, typer.Option(help="The folder, made if it is missing.")] = Path("."),
    steps: Annotated[int, typer.Option(help="Inner steps.")] = 3,
    folded: Annotated[bool, typer.Option(help="Show repeated steps once.")] = True,
) -> None:
    """Write pictures of MAML by Adam and its kin, with the meta-gradients measured.

    maml.svg and maml.html: inner steps of Adam, unrolled. implicit.svg: the same inner problem
    solved and differentiated implicitly. zero_order.svg: a loss of unknown derivative.
    """
    if steps < 1:
        raise typer.BadParameter(f"expected at least 1 inner step, got {steps}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(
            f"expected a folder to write to, got {error.strerror!r}, at {out}"
        ) from error
    graph = maml(steps, folded)
    for name in ("maml.svg", "maml.html"):
        typer.echo(graph.save(out / name))
    typer.echo(implicit().save(out / "implicit.svg"))
    typer.echo(zero_order().save(out / "zero_order.svg"))


def maml(steps: int, fold: bool = True) -> optviz.Graph:
    """An outer loss after some steps of Adam on weighted examples."""
    optdiff = _optdiff()
    x, y, x_val, y_val = _data()
    phi = torch.zeros_like(y, requires_grad=True)
    model = torch.nn.Linear(4, 1, dtype=x.dtype)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.bias.fill_(0.2)
    inputs = [model.state_dict(keep_vars=True), {"phi": phi}]
    inner = optviz.instrument(optdiff.MetaAdam(model, lr=0.1))
    for _ in range(steps):
        inner.step((phi.sigmoid() * (model(x) - y) ** 2).mean())
    with optviz.scope("outer loss"):
        loss = ((model(x_val) - y_val) ** 2).mean()
    return _measured(loss, inputs, fold)


def implicit() -> optviz.Graph:
    """The same where the inner problem is solved, and its solution differentiated as a root."""
    optdiff = _optdiff()
    x, y, x_val, y_val = _data()
    phi = torch.zeros_like(y, requires_grad=True)

    def objective(w: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        return (phi.sigmoid() * (x @ w - y) ** 2).mean() + 0.1 * (w**2).sum()

    @optdiff.custom_root(torch.func.grad(objective), solve=optdiff.linear_solve.solve_cg(rtol=1e-3))
    def solve(init: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
        return optdiff.minimize.gradient_descent(objective, init, phi, tol=1e-3).solution

    with optviz.scope("inner problem"):
        w = solve(x.new_zeros(4, 1), phi)
    with optviz.scope("outer loss"):
        loss = ((x_val @ w - y_val) ** 2).mean()
    return _measured(loss, {"phi": phi})


def zero_order() -> optviz.Graph:
    """A count of mistakes, which has no useful derivative, by an estimate; and a penalty."""
    optdiff = _optdiff()
    x, y, *_ = _data()
    phi = torch.linspace(-1, 1, 4, dtype=x.dtype).requires_grad_()
    normal = torch.distributions.Normal(x.new_tensor(0.0), x.new_tensor(1.0))
    generator = torch.Generator().manual_seed(0)

    @optdiff.zero_order(normal, method="antithetic", num_samples=20, sigma=0.3, generator=generator)
    def mistakes(w: torch.Tensor) -> torch.Tensor:
        return ((x @ w).sign() != y.squeeze().sign()).to(w).sum()

    with optviz.scope("weights"):
        w = phi.tanh()
    with optviz.scope("outer loss"):
        loss = mistakes(w) + 0.1 * (phi**2).sum()
    return _measured(loss, {"phi": phi})


def _data() -> list[torch.Tensor]:
    """Examples and targets, to learn from and to validate with."""
    grid = torch.arange(1, 161, dtype=torch.float64)
    x, x_val = grid[:64].sin().view(16, 4), grid[80:144].sin().view(16, 4)
    return [x, x.sum(1, keepdim=True), x_val, x_val.cos().sum(1, keepdim=True) - 2]


def _measured(loss: torch.Tensor, inputs: Any, fold: bool = True) -> optviz.Graph:
    outputs: Mapping[str, torch.Tensor] = {"loss": loss}
    return optviz.flow(optviz.draw(outputs, inputs, fold=fold), loss)


def _optdiff() -> Any:
    try:
        import optdiff
    except ModuleNotFoundError as error:
        raise SystemExit(
            "python -m optviz example: optdiff is not installed; pip install 'optviz[example]'"
        ) from error
    return optdiff


if __name__ == "__main__":
    app()
