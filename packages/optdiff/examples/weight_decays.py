# SPDX-License-Identifier: Apache-2.0
r"""A weight decay for every pixel, by implicit gradients (Pedregosa, 2016, arXiv:1602.02355).

    python packages/optdiff/examples/weight_decays.py

Softmax regression on images of digits, 64 pixels and ten classes, with a decay for each pixel:

.. math::
    W(\theta) = \arg\min_W \frac1n \sum_i \ell(x_i^\top W, y_i)
        + \tfrac12 \sum_{j=1}^{64} e^{\theta_j} \|W_j\|^2, \qquad
    L(\theta) = \frac1m \sum_k \ell(x_k^\top W(\theta), y_k) \text{ on other images.}

:math:`W` is found by L-BFGS. By the implicit function theorem one linear system gives the gradient
of :math:`L` in all 64 decays, :math:`-\partial_\theta g^\top (\partial_W g)^{-1} \nabla L` with
:math:`g` the gradient of the inner objective: as much work as for one decay, solved here by
conjugate gradients. Beside it: one decay for all pixels, by a grid, by the same gradient, and by
scikit-learn's cross-validation, and 64 decays by random search. `--loss squares` takes least
squares for the cross-entropy, that is ridge regression, whose solution is known in closed form.

64 hyperparameters fit 400 validation images well, and too well: look at the test columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from digits import Images, parts_of, shuffled, together
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from regression import Loss, accuracy, solver, start
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from torch import Tensor
from torch.nn import functional

import optcore

TRAIN, VALIDATION = 200, 400  # images; the other 1197 are for the test
TOL = 1e-6  # of every fit
LEAST, MOST = -12.0, 0.0  # logarithms of decays to choose from
OUTER_LR = 0.3
ONE, MANY = "one, by its gradient", "64, by their gradient"


class Problem(NamedTuple):
    """Images for the weights, for the decays, and for the test; what is minimized."""

    train: Images
    validation: Images
    test: Images
    loss: Loss
    tol: float = TOL  # of the fits: the norm of the gradient that is left

    def fit(self, images: Images) -> Callable[[Tensor, Tensor], Tensor]:
        """The best weights for some images, from a first guess, by the decays."""
        return solver(images, self.loss, self.tol)

    def cost(self, w: Tensor, images: Images) -> Tensor:
        """Mean loss of some weights on some images."""
        return self.loss.of(images.x @ w, images.y)


class Found(NamedTuple):
    """Decays that a method chose, what it cost, and the weights if it has its own."""

    log_decay: Tensor  # (64,)
    cpu_seconds: float
    fits: int
    refitted: Tensor | None = None  # on all but the test images
    curve: tuple[float, ...] = ()  # validation loss by outer step
    test_curve: tuple[float, ...] = ()  # test loss, to look at only


class Row(NamedTuple):
    """A line of the table."""

    validation_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    refitted_loss: float
    refitted_accuracy: float
    cpu_seconds: float
    fits: float


def search(problem: Problem, tried: Tensor) -> Found:
    """The best of some decays, one row each, by the loss on the validation images."""
    began = time.process_time()
    fit, w = problem.fit(problem.train), start(problem.train)
    found = []
    for log_decay in tried:
        w = fit(w, log_decay)  # from the last weights: the guess saves time and changes nothing
        found.append(problem.cost(w, problem.validation).item())
    best = min(range(len(tried)), key=found.__getitem__)
    return Found(tried[best], time.process_time() - began, len(tried))


def descend(problem: Problem, first: Found, steps: int, *, shared: bool) -> Found:
    """Adam on the logarithms of the decays, in their range, from a grid's, whose cost counts."""
    began = time.process_time()
    fit, w = problem.fit(problem.train), start(problem.train)
    theta = first.log_decay[:1] if shared else first.log_decay
    theta = theta.clone().requires_grad_()
    outer = optcore.FuncOptimizer(optcore.adam(lr=OUTER_LR))
    curve, test_curve = [], []
    for _ in range(steps):
        w = fit(w.detach(), theta.expand(64))
        value = problem.cost(w, problem.validation)
        curve.append(value.item())
        test_curve.append(problem.cost(w.detach(), problem.test).item())
        theta = outer.step(value, theta).detach().clamp(LEAST, MOST).requires_grad_()
    spent = first.cpu_seconds + time.process_time() - began
    chosen = theta.detach().expand(64)
    curves = tuple(curve), tuple(test_curve)
    return Found(chosen, spent, first.fits + steps, None, *curves)


def cross_validation(problem: Problem, grid: Tensor) -> Found:
    """scikit-learn's choice among some decays, by five folds of all images but the test's."""
    images = together(problem.train, problem.validation)
    x, count = images.x.numpy(), len(images.y)
    if problem.loss is Loss.entropy:
        model, scoring = LogisticRegression(fit_intercept=False, max_iter=10_000), "neg_log_loss"
        targets, strengths = images.y, {"C": (1 / (count * grid.exp())).tolist()}
    else:
        model, scoring = Ridge(fit_intercept=False), "neg_mean_squared_error"
        targets, strengths = functional.one_hot(images.y), {"alpha": (count * grid.exp()).tolist()}
    began = time.process_time()
    found = GridSearchCV(model, strengths, scoring=scoring, cv=5).fit(x, targets.numpy())
    w, log_decay = found.best_estimator_.coef_, grid[found.best_index_].expand(64)
    spent = time.process_time() - began
    return Found(log_decay, spent, 5 * len(grid) + 1, torch.from_numpy(w).T)


def judged(problem: Problem, found: Found) -> Row:
    """Losses and accuracies of weights with these decays; again with the validation images too."""
    images, test = together(problem.train, problem.validation), problem.test
    refitted = found.refitted
    if refitted is None:
        refitted = problem.fit(images)(start(images), found.log_decay)
    again = problem.cost(refitted, test).item(), accuracy(refitted, test)
    if found.refitted is not None:  # it has no weights from the training images alone
        return Row(None, None, None, *again, found.cpu_seconds, found.fits)
    w = problem.fit(problem.train)(start(images), found.log_decay)
    on_validation, on_test = (problem.cost(w, part).item() for part in (problem.validation, test))
    return Row(on_validation, on_test, accuracy(w, test), *again, found.cpu_seconds, found.fits)


def compare(
    problem: Problem, steps: int, tries: int, seed: int, done: Callable[[str], None]
) -> dict[str, Found]:
    """Choose decays in every way."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.linspace(MOST, LEAST, tries, dtype=torch.float64)
    drawn = torch.rand(tries + steps, 64, generator=generator, dtype=torch.float64)
    found = {"one, from a grid": search(problem, grid[:, None].expand(-1, 64))}
    done("grid")
    found["one, by scikit-learn's CV"] = cross_validation(problem, grid)
    done("cross-validation")
    found["64, random search"] = search(problem, LEAST + (MOST - LEAST) * drawn)
    done("random search")
    for name, shared in ((ONE, True), (MANY, False)):
        found[name] = descend(problem, found["one, from a grid"], steps, shared=shared)
        done(name)
    return found


def text(one: Score, scale: float, digits: int) -> str:
    """A score for the tables."""
    return f"{scale * one.mean:.{digits}f} ± {scale * one.half_width:.{digits}f}"


def tables(rows: dict[str, dict[str, Score | None]], seeds: int) -> tuple[Table, Table]:
    """What the weights of each method are worth, and what its decays are worth and cost."""
    fitted = Table(
        title=f"weights fitted to {TRAIN} training images, decays to {VALIDATION} others",
        caption=f"± half of the 95 % interval over {seeds} splits",
    )
    for name in ("decays", "validation loss", "test loss", "test accuracy (%)"):
        fitted.add_column(name, justify="right" if name != "decays" else "left")
    refitted = Table(
        title=f"refitted to all {TRAIN + VALIDATION} with these decays; what they cost",
        caption="CPU time and fits include the grid from which gradients start",
    )
    for name in ("decays", "test loss", "test accuracy (%)", "CPU (s)", "fits"):
        refitted.add_column(name, justify="right" if name != "decays" else "left")
    for name, row in rows.items():
        if row["test_loss"] is not None:
            shown = (row["validation_loss"], 1, 3), (row["test_loss"], 1, 3)
            fitted.add_row(name, *(text(*one) for one in (*shown, (row["test_accuracy"], 100, 1))))
        shown = text(row["refitted_loss"], 1, 3), text(row["refitted_accuracy"], 100, 1)
        cost = f"{row['cpu_seconds'].mean:.1f}", f"{row['fits'].mean:.0f}"
        refitted.add_row(name, *shown, *cost)
    return fitted, refitted


def save_figure(path: Path, problem: Problem, found: dict[str, Found]) -> None:
    """Plot the outer loop of one split, its decays by pixel, and how bright the pixels are."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    FigureCanvasAgg(figure)
    curve, decays, mean = figure.subplots(1, 3)
    for name, color in ((MANY, "C0"), (ONE, "C1")):
        curve.plot(found[name].curve, color=color, label=f"{name}: validation")
        curve.plot(found[name].test_curve, "--", color=color, label=f"{name}: test")
    curve.set(
        xlabel="outer step",
        ylabel=f"loss ({'nats' if problem.loss is Loss.entropy else 'half squares'})",
        title="loss while decays are learned",
    )
    curve.xaxis.get_major_locator().set_params(integer=True)
    curve.grid(alpha=0.3)
    curve.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize="small")
    shown = decays.imshow(found[MANY].log_decay.reshape(8, 8).numpy(), cmap="viridis")
    figure.colorbar(shown, ax=decays, label="logarithm of the decay")
    decays.set(title="learned decay of each pixel", xlabel="column (pixel)", ylabel="row (pixel)")
    shown = mean.imshow(problem.train.x.mean(0).reshape(8, 8).numpy(), cmap="gray", vmin=0, vmax=1)
    figure.colorbar(shown, ax=mean, label="mean value, 1 is ink")
    mean.set(title="mean training image", xlabel="column (pixel)", ylabel="row (pixel)")
    figure.savefig(path, dpi=120)


def summary(values: list[float | None]) -> Score | None:
    """Mean over splits, where there are values."""
    numbers = [value for value in values if value is not None]
    return score(numbers) if numbers else None


def run(loss: Loss, steps: int, tries: int, seeds: range, tol: float, out: Path) -> None:
    """Compare on every split, print the table, save the picture and the numbers."""
    console = Console()
    rows: dict[str, list[Row]] = {}
    with Phases(console) as phases:
        for seed in seeds:
            images = shuffled(torch.Generator().manual_seed(seed), torch.float64)
            problem = Problem(*parts_of(images, TRAIN, VALIDATION), loss, tol)
            done = phases.start(f"split {seed}", 5)
            found = compare(problem, steps, tries, seed, done)
            if seed == seeds[0]:
                save_figure(out / "weight_decays.png", problem, found)
                decays = found[MANY].log_decay.tolist()
            for name, one in found.items():
                rows.setdefault(name, []).append(judged(problem, one))
    scores = {
        name: {key: summary([getattr(row, key) for row in many]) for key in Row._fields}
        for name, many in rows.items()
    }
    for one in tables(scores, len(seeds)):
        console.print(one)
    record = {
        "settings": {"loss": loss.value, "steps": steps, "tries": tries, "seeds": list(seeds)},
        "scores": {
            name: {key: one and one._asdict() for key, one in row.items()}
            for name, row in scores.items()
        },
        "log_decays": decays,
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def main(
    loss: Annotated[Loss, typer.Option(help="Softmax or ridge regression.")] = Loss.entropy,
    steps: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 30,
    tries: Annotated[int, typer.Option(min=2, help="Values of the grid.")] = 13,
    seeds: Annotated[int, typer.Option(min=2, help="Splits of the images.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path(
        "out/weight_decays"
    ),
) -> None:
    """Learn 64 weight decays, one for each pixel, by the implicit function theorem."""
    folder("weight_decays", out)
    torch.set_num_threads(threads)
    tol = TOL
    started, cpu = time.perf_counter(), time.process_time()
    if smoke:
        steps, tries, seeds, tol = 2, 2, 2, 1e-3
    run(loss, steps, tries, range(seed, seed + seeds), tol, out)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
