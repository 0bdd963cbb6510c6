# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# One loss, many workers.

A bilevel problem whose inner problems are independent is a sum, and a sum can be shared out. Here
64 weight decays, one for each pixel, are learned so that ridge regressions on small samples of
digits do well on others. `optdist.parallelize` runs some of the regressions in each process, and
differentiates through them there. Run it alone, or on workers:

    python packages/optdist/tutorials/many_workers.py
    python -m optdist.launch --nproc 2 packages/optdist/tutorials/many_workers.py
"""

# %%
import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits

import optdist

# %% [markdown]
# ## The function of a batch
#
# A row of the batch is a regression: some digits to fit, some to be judged by. The solution depends
# on the weight decays through a linear system, which torch differentiates. The function stands at
# the top level of the file, where every process finds it by name.


# %%
def ridge_loss(log_decay: torch.Tensor, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean error of the regressions in this chunk on digits that they did not see."""
    losses = []
    for x, y, other_x, other_y in zip(*batch, strict=True):
        w = torch.linalg.solve(x.T @ x + torch.diag(log_decay.exp()), x.T @ y)
        losses.append((other_x @ w - other_y).square().mean())
    return torch.stack(losses).mean()


# %% [markdown]
# Tensors with a first dimension are split by rows: the batch. `log_decay` has one too, and every
# worker needs all of it, so `replicate` names it. (Modules and 0-d tensors need no mention.)

# %%
parallel_loss = optdist.parallelize(replicate=["log_decay"])(ridge_loss)


def regressions(count: int, size: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Draw `count` regressions on `size` digits each, and as many to judge them by."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images / 16)
    y = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    generator = torch.Generator().manual_seed(seed)
    draws = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(count)])
    fit, judge = draws[:, :size], draws[:, size : 2 * size]
    return x[fit], y[fit], x[judge], y[judge]


# %% [markdown]
# ## The same value, the same gradient
#
# The result has a `grad_fn`. Fifteen rows on two workers are eight and seven, and count so.


# %%
def compare() -> None:
    """Print how far value and gradient are from those of one process."""
    log_decay = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    batch = regressions(15, 40, seed=1)
    value, wanted = parallel_loss(log_decay, batch), ridge_loss(log_decay, batch)
    pairs = [(value, wanted)]
    pairs += zip(torch.autograd.grad(value, log_decay), torch.autograd.grad(wanted, log_decay))
    off = max((a - b).abs().max().item() for a, b in pairs)
    print(f"15 rows: {value.item():.6f}, off by less than 1e-12: {off < 1e-12}")
    print(f"chunks: {parallel_loss.last_report.chunks}, one a worker")


# %% [markdown]
# ## Training
#
# An ordinary loop. `last_report` tells after each step who worked how long, what travelled, and
# whether a worker was lost and its chunk run elsewhere.


# %%
def train(steps: int = 30) -> tuple[torch.Tensor, float, float]:
    """Learn the decays; return them and the losses on other regressions, before and after."""
    log_decay = torch.zeros(64, dtype=torch.float64, requires_grad=True)
    outer = torch.optim.Adam([log_decay], lr=0.2)
    fresh = regressions(40, 40, seed=0)
    before = ridge_loss(log_decay, fresh).item()
    for step in range(steps):
        outer.zero_grad()
        parallel_loss(log_decay, regressions(15, 40, seed=step + 10)).backward()
        outer.step()
    report = parallel_loss.last_report
    print(f"retries in the last step: {report.retries}; workers: {', '.join(sorted(report.busy))}")
    return log_decay.detach(), before, ridge_loss(log_decay, fresh).item()


# %% [markdown]
# ## Who runs what
#
# Every process calls `main`. Rank 0 does the work and gives chunks away; the others come in, serve
# until it is done, and leave. Alone, rank 0 runs all chunks itself.


# %%
@optdist.auto_init_rpc()
def main() -> None:
    """Start the processes."""
    show()


@optdist.rank_zero_only
def show() -> None:
    """Compare, train and draw."""
    compare()
    log_decay, before, after = train()
    print(f"error on regressions not trained on: {before:.4f}, with learned decays {after:.4f}")
    figure, axes = plt.subplots(figsize=(4, 3.2), layout="constrained")
    drawn = axes.imshow(log_decay.reshape(8, 8).numpy(), cmap="viridis")
    figure.colorbar(drawn, label="log weight decay")
    axes.set(title="learned, one for each pixel", xticks=[], yticks=[])
    path = Path("out/tutorials/many_workers.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    print(f"plot in {path}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0].strip("# .")).parse_known_args()
    main()
