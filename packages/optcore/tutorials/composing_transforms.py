# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# Optimizers made of parts.

An optimizer here is a chain of small transformations of the gradient. This tutorial makes a
difficult training run from scikit-learn's digits, finds out which part mends it, writes a new
part, and accumulates gradients.
"""

# %%
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import optcore

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float64)
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, held_out = order[:1200], order[1200:]

HIDDEN = 32
start = {
    "w1": torch.randn(64, HIDDEN, dtype=torch.float64) / 8,
    "w2": torch.randn(HIDDEN, HIDDEN, dtype=torch.float64) / HIDDEN**0.5,
    "w3": torch.randn(HIDDEN, 10, dtype=torch.float64) / HIDDEN**0.5,
}
Params = dict[str, torch.Tensor]


def logits(params: Params, x: torch.Tensor) -> torch.Tensor:
    """Scores of the ten classes."""
    return (x @ params["w1"]).relu().matmul(params["w2"]).relu() @ params["w3"]


def loss(params: Params, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return cross_entropy(logits(params, x), y)


def accuracy(params: Params) -> float:
    """Share of the held-out images that are read correctly."""
    return (logits(params, images[held_out]).argmax(-1) == labels[held_out]).double().mean().item()


# %% [markdown]
# ## A run with accidents
#
# Batches of 32. One batch in forty has its pixels scaled by 100, as when a sensor or a decoder
# fails: its gradient is hundreds of times too large.

# %%
STEPS = 320
generator = torch.Generator().manual_seed(1)
batches = [train[torch.randint(len(train), (32,), generator=generator)] for _ in range(STEPS)]
brightness = [100.0 if index % 40 == 39 else 1.0 for index in range(STEPS)]


def run(opt: optcore.GradientTransformation) -> tuple[list[float], Params]:
    """Losses on all clean training images, every tenth step, and the last parameters."""
    params, state, losses = start, opt.init(start), []
    for index, (rows, factor) in enumerate(zip(batches, brightness, strict=True)):
        grads = torch.func.grad(loss)(params, factor * images[rows], labels[rows])
        updates, state = opt.update(grads, state, params, inplace=False)
        params = optcore.apply_updates(params, updates, inplace=False)
        if index % 10 == 9:
            losses.append(loss(params, images[train], labels[train]).item())
    return losses, params


# %% [markdown]
# ## Parts in a chain
#
# `chain` applies its members from left to right; each sees what the one before it made. The last
# one turns a direction into a step downhill. A schedule may stand wherever a number may.

# %%
schedule = optcore.warmup_cosine_decay_schedule(
    init_value=0.0, peak_value=0.1, warmup_steps=40, decay_steps=STEPS
)
descend = optcore.scale_by_learning_rate
recipes = {
    "momentum": optcore.chain(optcore.trace(0.9), descend(0.1)),
    "clip, momentum": optcore.chain(
        optcore.clip_by_global_norm(1.0), optcore.trace(0.9), descend(0.1)
    ),
    "clip, momentum, schedule": optcore.chain(
        optcore.clip_by_global_norm(1.0), optcore.trace(0.9), descend(schedule)
    ),
    "momentum, clip": optcore.chain(
        optcore.trace(0.9), optcore.clip_by_global_norm(1.0), descend(0.1)
    ),
}
curves = {}
for name, opt in recipes.items():
    curves[name], params = run(opt)
    print(f"{name:36} training loss {curves[name][-1]:8.4f}, accuracy {accuracy(params):.3f}")

# %% [markdown]
# The order matters. Clipped *before* the momentum, a bad gradient is forgotten after a few steps;
# clipped after it, the momentum has already been filled with it.
#
# ## A part of your own
#
# A part without memory is a function of one leaf:

# %%
signs = optcore.stateless_with_tree_map(lambda grad, param: grad.sign())
grads = [torch.tensor([-3.0, 0.5])]
opt = optcore.chain(signs, descend(0.1))
print("signs only:", opt.update(grads, opt.init(grads))[0])

# %% [markdown]
# A part with memory is two functions of the whole tree. This one ignores a gradient whose norm is
# far above the average norm so far, and counts how often it did. `torch.where` instead of `if`
# keeps it differentiable, and vmap and `torch.compile` can run it.


# %%
class SkipState(NamedTuple):
    """What the part remembers."""

    norm: torch.Tensor  # average norm of the gradients that were let through
    skipped: torch.Tensor


def skip_init(params: Params, *, factor: float) -> SkipState:
    """No gradient seen: everything is let through."""
    return SkipState(torch.tensor(torch.inf), torch.tensor(0))


def skip_update(
    updates: Params, state: SkipState, params: Params | None, *, inplace: bool, factor: float
) -> tuple[Params, SkipState]:
    """Zeros instead of a gradient that is too large."""
    norm = optcore.global_norm(updates)
    good = norm <= factor * state.norm
    seen = torch.where(state.norm.isinf(), norm, 0.9 * state.norm + 0.1 * norm)
    updates = {name: torch.where(good, grad, 0.0) for name, grad in updates.items()}
    return updates, SkipState(torch.where(good, seen, state.norm), state.skipped + ~good)


def skip_outliers(factor: float) -> optcore.GradientTransformation:
    """Drop gradients more than ``factor`` times as long as usual."""
    return optcore.GradientTransformation(
        skip_init, skip_update, static={"factor": factor}, name="skip_outliers"
    )


print(skip_outliers(10.0), skip_outliers(10.0) == skip_outliers(10.0))
name = "skip outliers, momentum, schedule"
opt = optcore.chain(skip_outliers(10.0), optcore.trace(0.9), descend(schedule))
curves[name], params = run(opt)
print(f"{name:36} training loss {curves[name][-1]:8.4f}, accuracy {accuracy(params):.3f}")

# %% [markdown]
# It never loses a step to a bad batch, and equal factors make equal transformations.
#
# ## Large batches from small ones
#
# `multi_steps` takes a transformation and hands it the mean of several gradients. Four batches of
# 32 are one batch of 128:

# %%
gradient = torch.func.grad(loss)
inner = partial(optcore.adam, lr=0.01)
accumulating, whole = optcore.multi_steps(inner(), every_k_schedule=4), inner()
small, large = start, start
small_state, large_state = accumulating.init(start), whole.init(start)
for first in range(0, 40, 4):
    for rows in batches[first : first + 4]:
        grads = gradient(small, images[rows], labels[rows])
        updates, small_state = accumulating.update(grads, small_state, small)
        small = optcore.apply_updates(small, updates, inplace=False)
    rows = torch.cat(batches[first : first + 4])
    grads = gradient(large, images[rows], labels[rows])
    updates, large_state = whole.update(grads, large_state, large)
    large = optcore.apply_updates(large, updates, inplace=False)
gap = max((small[name] - large[name]).abs().max().item() for name in start)
print(f"ten steps of 4 x 32 and of 128 images: largest difference {gap:.1e}")

# %%
figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
steps = range(10, STEPS + 1, 10)
for name, losses in curves.items():
    axes.plot(steps, losses, label=f"{name}: {losses[-1]:.3g}")
for index, factor in enumerate(brightness):
    if factor > 1:
        axes.axvline(index + 1, color="0.85", zorder=0)
axes.set(xlabel="step (grey: a bad batch)", ylabel="loss on clean training images", yscale="log")
axes.legend(title="chain: loss at the end")
path = Path("out/tutorials/composing_transforms.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
