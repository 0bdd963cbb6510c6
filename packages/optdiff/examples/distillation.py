# SPDX-License-Identifier: Apache-2.0
r"""Dataset distillation (Wang et al., 2018, arXiv:1811.10959): a few learned images teach a net.

    python packages/optdiff/examples/distillation.py

A net takes ten steps of gradient descent on a few images :math:`\tilde x`, with rates
:math:`\tilde\eta_t` of their own. What it then costs on 800 real images depends on these
images and rates, and is minimized in them, through the ten steps:

.. math::
    \theta_{t+1} = \theta_t - \tilde\eta_t \nabla_\theta \ell(\theta_t; \tilde x), \qquad
    \min_{\tilde x, \tilde\eta}\; \mathbb{E}_{\theta_0}\; \ell(\theta_{10}; x).

:math:`\theta_0` is one that is known (`fixed`), or anew at every outer step (`random`), and then
the test starts from weights never seen. The loop is `optdiff.unroll`, the starts are one ``vmap``.
Beside it: real images picked at random, the means of the digits (always ten images), and k-means
centroids of each digit, whose rates are learned in as many outer steps. Every row has the learning
rate of the outer loop with which it teaches best to read 200 real images that were held out; all
rates are tried at once, by ``vmap``. Test images are read with that one only. scikit-learn's
digits, 8 x 8 pixels, stand in for MNIST, a small net for LeNet.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from digits import Images, parts_of, shuffled
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, Score, folder, score
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional

import optcore
import optdiff

TRAIN, HELD_OUT = 800, 200  # images to learn from, and to choose the outer rate by
WIDTH, STEPS = 32, 10  # of the hidden layer; inner steps
STARTS, TEST_STARTS = 4, 20  # random nets of an outer step, and of the test
BATCH = 250  # real images of an outer step
# Outer rates to choose from. Logarithms of rates have far to go: the best rates are 0.5 to 25.
OUTER_RATES = (0.005, 0.01, 0.02, 0.05)  # of images and rates together
RATES_ALONE = (0.05, 0.1, 0.2, 0.4)
LEARNED = "learned images"
# LeNet on MNIST, with its standard deviation over starts.
PAPER = {"fixed start, 10 images": "93.8", "random start, 30 images": "79.5 (8.1)"}
Params = dict[str, Tensor]


class Taught(NamedTuple):
    """Teaching images, the logarithms of their rates, and how a net reads after the lesson."""

    images: Images
    log_rates: Tensor  # (steps,)
    outer_rate: float  # that was chosen
    accuracy: float


def starts(count: int, generator: torch.Generator) -> Params:
    """First weights of some nets 64-32-10, stacked; their size as in torch.nn.Linear's default."""

    def uniform(fan_in: int, *shape: int) -> Tensor:
        return (2 * torch.rand(count, *shape, generator=generator) - 1) / fan_in**0.5

    return {
        "hidden": uniform(64, 64, WIDTH),
        "hidden_bias": uniform(64, WIDTH),
        "out": uniform(WIDTH, WIDTH, 10),
        "out_bias": uniform(WIDTH, 10),
    }


def scores(params: Params, x: Tensor) -> Tensor:
    """What one net says of some images."""
    hidden = torch.tanh(x @ params["hidden"] + params["hidden_bias"])
    return hidden @ params["out"] + params["out_bias"]


def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of one net on some images."""
    return functional.cross_entropy(scores(params, x), y)


def taught(params: Params, x: Tensor, y: Tensor, log_rates: Tensor) -> Params:
    """One net after a step on the teaching images for each rate."""

    def step(params: Params, i: int, x: Tensor, rates: Tensor) -> Params:
        grads = grad(loss)(params, x, y)
        return {name: p - rates[i] * grads[name] for name, p in params.items()}

    return optdiff.unroll(step, params, len(log_rates), x, log_rates.exp())


def outer_loss(first: Params, x: Tensor, y: Tensor, log_rates: Tensor, real: Images) -> Tensor:
    """Mean loss on real images of nets that were taught, ``first`` being their stacked weights."""

    def one(params: Params) -> Tensor:
        return loss(taught(params, x, y, log_rates), real.x, real.y)

    return vmap(one)(first).mean()


def accuracy(first: Params, teaching: Images, log_rates: Tensor, test: Images) -> float:
    """Mean share of test images read correctly by nets that were taught."""
    with torch.no_grad():
        nets = vmap(lambda params: taught(params, *teaching, log_rates))(first)
        read = vmap(scores, in_dims=(0, None))(nets, test.x).argmax(2)
    return (read == test.y).float().mean().item()


def learn(
    teaching: Images,
    real: Images,
    known: Params | None,
    steps: int,
    seed: int,
    outer_rates: Sequence[float],
    *,
    rates_only: bool,
) -> list[tuple[Images, Tensor]]:
    """Learn rates, and images from the given ones; for weights that are known, or for any.

    Outer steps are Adam's on clipped gradients, ever shorter: where inner steps no longer
    converge, the gradient explodes. Gives what each outer rate leads to.
    """
    generator = torch.Generator().manual_seed(seed)
    learned = {"log_rates": torch.full((STEPS,), 0.5).log()}
    if not rates_only:
        learned["x"] = teaching.x
    learned = {name: p.expand(len(outer_rates), *p.shape) for name, p in learned.items()}

    def outer(rate: Tensor) -> optcore.GradientTransformation:
        return optcore.chain(optcore.clip_by_global_norm(1.0), optcore.adam(rate))

    def step(learned: Params, state: Any, rate: Tensor, first: Params, real: Images) -> Any:
        def cost(learned: Params) -> Tensor:
            x = learned.get("x", teaching.x)
            return outer_loss(first, x, teaching.y, learned["log_rates"], real)

        updates, state = outer(rate).update(grad(cost)(learned), state, learned)
        return optcore.apply_updates(learned, updates), state

    rates = torch.tensor(outer_rates)
    state = vmap(lambda learned, rate: outer(rate).init(learned))(learned, rates)
    shrinking = optcore.cosine_decay_schedule(1.0, steps)
    steps_of_all = vmap(step, in_dims=(0, 0, 0, None, None))
    for i in range(steps):
        first = starts(STARTS, generator) if known is None else known
        batch = real.rows(torch.randperm(len(real.y), generator=generator)[:BATCH])
        learned, state = steps_of_all(learned, state, shrinking(i) * rates, first, batch)
    found = learned.get("x", teaching.x.expand(len(outer_rates), -1, -1))
    return [(Images(x, teaching.y), rates) for x, rates in zip(found, learned["log_rates"])]


def teachers(real: Images, count: int, seed: int) -> dict[str, Images]:
    """So many images of each digit, chosen in simple ways."""
    by_digit = [real.of(digit).x for digit in range(10)]
    y = torch.arange(10).repeat_interleave(count)
    centroids = [
        KMeans(count, n_init=3, random_state=seed).fit(x.numpy()).cluster_centers_ for x in by_digit
    ]
    return {
        "real images": Images(torch.cat([x[:count] for x in by_digit]), y),
        "mean images": Images(torch.stack([x.mean(0) for x in by_digit]), torch.arange(10)),
        "k-means images": Images(torch.cat([torch.tensor(c) for c in centroids]).to(real.x), y),
    }


def compare(start: str, count: int, steps: int, seed: int) -> dict[str, Taught]:
    """Teach in every way, with so many images of each digit, and test."""
    generator = torch.Generator().manual_seed(seed)
    real, held_out, test = parts_of(shuffled(generator), TRAIN, HELD_OUT)
    known = starts(1, generator) if start == "fixed" else None
    unseen, others = (known or starts(TEST_STARTS, generator) for _ in range(2))
    found = {}
    ways = teachers(real, count, seed)
    for name, teaching in {**ways, LEARNED: ways["k-means images"]}.items():
        only = name != LEARNED
        rates = RATES_ALONE if only else OUTER_RATES
        lessons = learn(teaching, real, known, steps, seed, rates, rates_only=only)
        held = [accuracy(others, *lesson, held_out) for lesson in lessons]
        best = max(range(len(rates)), key=held.__getitem__)
        found[name] = Taught(*lessons[best], rates[best], accuracy(unseen, *lessons[best], test))
    return found


def table(results: Mapping[str, Mapping[str, Score]], seeds: int) -> Table:
    """Accuracies: a row for each kind of teaching images, a column for each setting."""
    shown = Table(
        title=f"test accuracy (%) after {STEPS} steps on a few images",
        caption=f"± half of the 95 % interval over {seeds} seeds; the paper's: LeNet on MNIST, for "
        "which digits stand in here; in the last column its standard deviation, and 100 images; "
        f"the outer rate of each row is chosen by {HELD_OUT} images held out",
    )
    shown.add_column("taught by")
    for setting in results:
        shown.add_column(setting, justify="right")
    for name in next(iter(results.values())):
        cells = (row[name] for row in results.values())
        shown.add_row(name, *(f"{100 * c.mean:.1f} ± {100 * c.half_width:.1f}" for c in cells))
    shown.add_section()
    shown.add_row("paper, MNIST", *(PAPER.get(setting, "") for setting in results))
    return shown


def save_figure(path: Path, pictures: Mapping[str, Taught]) -> None:
    """Show the teaching images of one seed, a row for each kind."""
    figure = Figure(figsize=(11, 1.35 * len(pictures) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(pictures), 10, squeeze=False)
    for row, (name, one) in zip(panels, pictures.items()):
        size = one.images.x.abs().max().item()
        for digit, axes in enumerate(row):
            image = one.images.of(digit).x[0].reshape(8, 8).numpy()
            # One scale for a row; grey is zero, so that negative pixels show.
            shown = axes.imshow(image, cmap="gray", vmin=-size, vmax=size)
            axes.set(xticks=[], yticks=[])
            if row is panels[0]:
                axes.set_title(f"digit {digit}", fontsize=10)
        label = f"{name}\n{100 * one.accuracy:.0f} % right"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
        figure.colorbar(shown, ax=list(row), label="pixel value", fraction=0.02, pad=0.01)
    figure.suptitle(f"Images that teach a net to read in {STEPS} steps, and test accuracy")
    figure.savefig(path, dpi=120)


def run(counts: list[int], steps: int, seeds: range, out: Path) -> None:
    """Compare in every setting, print the table, save the picture and the numbers."""
    console = Console()
    results: dict[str, dict[str, Score]] = {}
    rates: dict[str, list[float]] = {}
    chosen: dict[str, dict[str, list[float]]] = {}
    pictures: dict[str, Taught] = {}
    with Phases(console) as phases:
        for start in ("fixed", "random"):
            for count in counts:
                setting = f"{start} start, {10 * count} images"
                done: Callable[[str], None] = phases.start(setting, len(seeds))
                found = []
                for seed in seeds:
                    found.append(compare(start, count, steps, seed))
                    done(f"{LEARNED}: {100 * found[-1][LEARNED].accuracy:.1f} %")
                results[setting] = {
                    name: score([one[name].accuracy for one in found]) for name in found[0]
                }
                rates[setting] = found[0][LEARNED].log_rates.exp().tolist()
                chosen[setting] = {n: [one[n].outer_rate for one in found] for n in found[0]}
                if count == counts[0]:
                    if not pictures:
                        pictures |= {one: found[0][one] for one in ("real images", "mean images")}
                    pictures[f"learned,\n{start} start"] = found[0][LEARNED]
    console.print(table(results, len(seeds)))
    save_figure(out / "distillation.png", pictures)
    record = {
        "accuracy": {
            setting: {name: one._asdict() for name, one in row.items()}
            for setting, row in results.items()
        },
        "learned rates of the first seed": rates,
        "outer rates by seed": chosen,
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def main(
    count: Annotated[
        list[int] | None,
        typer.Option(min=1, max=50, help="Images per digit; repeat (1 and 3 if left out)"),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Outer steps.")] = 200,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each kind.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="The first seed.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/distillation"),
) -> None:
    """Learn a few images from which a net learns to read digits in ten steps."""
    folder("distillation", out)
    torch.set_num_threads(threads)  # tensors are too small to share out: one is steadiest
    started, cpu = time.perf_counter(), time.process_time()
    counts = list(dict.fromkeys(count or (1, 3)))
    if smoke:
        counts, steps, seeds = [1], 30, 2
    run(counts, steps, range(seed, seed + seeds), out)
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
