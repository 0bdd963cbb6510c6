# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# An optimizer as a pair of functions.

`opt.init(params)` makes a state, `opt.update(grads, state, params)` turns gradients into
updates and the old state into a new one. Nothing else is kept anywhere, and that is what makes
an optimizer easy to save, to branch and to run many times at once. The data are the 8 x 8
handwritten digits that ship with scikit-learn.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import optcore

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
order = torch.randperm(len(images))
train, held_out = order[:1200], order[1200:]
print(f"{len(train)} images to train on, {len(held_out)} held out, {images.shape[1]} pixels each")


# %% [markdown]
# The model is a function of a dictionary of tensors.


# %%
def new_params(hidden: int = 32) -> dict[str, torch.Tensor]:
    """Weights of a network with one hidden layer."""
    return {
        "w1": torch.randn(64, hidden) / 8,
        "b1": torch.zeros(hidden),
        "w2": torch.randn(hidden, 10) / hidden**0.5,
        "b2": torch.zeros(10),
    }


def logits(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Scores of the ten classes."""
    return (x @ params["w1"] + params["b1"]).relu() @ params["w2"] + params["b2"]


def loss(params: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy."""
    return cross_entropy(logits(params, images[rows]), labels[rows])


def accuracy(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """Share of the held-out images that are read correctly."""
    return (logits(params, images[held_out]).argmax(-1) == labels[held_out]).float().mean()


# %% [markdown]
# ## One loop
#
# `torch.func.grad` gives gradients in the shape of the parameters, `update` makes steps of them
# and `apply_updates` adds the steps. `inplace=False` keeps the tensors we started from.


# %%
def take_step(
    opt: optcore.GradientTransformation,
    params: dict[str, torch.Tensor],
    state: object,
    rows: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], object]:
    """Parameters and state after one step."""
    grads = torch.func.grad(loss)(params, rows)
    updates, state = opt.update(grads, state, params, inplace=False)
    return optcore.apply_updates(params, updates, inplace=False), state


start = new_params()
opt = optcore.adam(lr=0.01)
params, state = start, opt.init(start)
print(f"before training: accuracy {accuracy(params):.3f}")
for _ in range(100):
    params, state = take_step(opt, params, state, train)
print(f"100 steps of Adam: accuracy {accuracy(params):.3f}, loss {loss(params, train):.4f}")

# %% [markdown]
# The same run with `torch.optim.Adam` ends in the same place:

# %%
leaves = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
torch_adam = torch.optim.Adam(leaves.values(), lr=0.01)
for _ in range(100):
    torch_adam.zero_grad()
    loss(leaves, train).backward()
    torch_adam.step()
gap = max((params[name] - leaves[name]).abs().max().item() for name in params)
print(f"largest difference from torch.optim.Adam, float32: {gap:.1e}")

# %% [markdown]
# ## A state is a value
#
# `params` and `state` are all there is. To go on from here in two ways, go on from here twice.

# %%
gentle = optcore.adam(lr=0.001)
branches = {}
for name, optimizer in (("lr 0.01 throughout", opt), ("lr 0.001 from here", gentle)):
    p, s = params, state
    for _ in range(50):
        p, s = take_step(optimizer, p, s, train)
    branches[name] = loss(p, train).item()
    print(f"{name}: training loss {branches[name]:.4f} after 50 more steps")

# %% [markdown]
# ## Twelve runs at once
#
# A hyperparameter may be a tensor, and functions of tensors can be vmapped. Here whole training
# runs are, over twelve learning rates.

# %%
rates = torch.logspace(-4, 0, 12)


def curve(lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Training losses of 100 steps with one learning rate, and the held-out accuracy at the end."""
    opt = optcore.adam(lr=lr)
    params, state = start, opt.init(start)
    losses = []
    for _ in range(100):
        losses.append(loss(params, train))
        params, state = take_step(opt, params, state, train)
    return torch.stack(losses), accuracy(params)


curves, accuracies = torch.func.vmap(curve)(rates)
for lr, final, right in zip(rates, curves[:, -1], accuracies, strict=True):
    print(f"lr {lr:8.4f}: training loss {final:7.4f}, accuracy {right:.3f}")
best = accuracies.argmax()
print(f"best of the twelve: lr {rates[best]:.4f} with {accuracies[best]:.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
for index in (2, 5, 6, 8, 10):
    left.plot(curves[index], label=f"{rates[index]:.2g}")
left.set(xlabel="step", ylabel="training loss", yscale="log", title="Five of the twelve runs")
left.legend(title="learning rate", loc="upper left", bbox_to_anchor=(1, 1))
right.semilogx(rates, accuracies, "o-")
right.set(
    xlabel="learning rate", ylabel="accuracy on held-out images", title="All twelve after 100 steps"
)
right.grid(alpha=0.3)
path = Path("out/tutorials/functional_optimizer.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
