# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# Hyperparameters per group, per parameter, and learned.

A hyperparameter is a number, a schedule, a tensor, or a tree of these that mirrors the
parameters. First each parameter gets its own by hand, then gradients find them: scikit-learn's
diabetes data has ten measurements of 442 patients, and not all of them deserve the same weight
decay.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes

import optcore

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
diabetes = load_diabetes(scaled=False)
x, y = torch.tensor(diabetes.data), torch.tensor(diabetes.target)
order = torch.randperm(len(x))
train, valid, test = order[:60], order[60:250], order[250:]  # few to train on: overfitting is easy
x = (x - x[train].mean(0)) / x[train].std(0)
y = (y - y[train].mean()) / y[train].std()


def loss(params: dict[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    """Mean squared error; 1 is what predicting the mean gives on the training rows."""
    return (x[rows] @ params["w"] + params["b"] - y[rows]).square().mean()


start = {"w": torch.zeros(10), "b": torch.zeros(())}

# %% [markdown]
# ## Groups of a class
#
# The classes are `torch.optim.Optimizer`s: groups, schedulers, hooks and checkpoints work as in
# torch.

# %%
model = torch.nn.Linear(10, 1)
optimizer = optcore.AdamW(
    [
        {"params": [model.weight], "weight_decay": 1.0},
        {"params": [model.bias], "weight_decay": 0.0, "lr": 0.2},
    ],
    lr=0.05,
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=200)
for _ in range(200):
    optimizer.zero_grad()
    (model(x[train]).squeeze(-1) - y[train]).square().mean().backward()
    optimizer.step()
    scheduler.step()
params = {"w": model.weight.detach()[0], "b": model.bias.detach()[0]}
print(f"AdamW with two groups: train {loss(params, train):.4f}, valid {loss(params, valid):.4f}")

# %% [markdown]
# ## The same for functions
#
# A dictionary that mirrors the parameters gives each its own value; `partition` gives groups
# whole transformations of their own.


# %%
def fit(opt: optcore.GradientTransformation, steps: int = 200) -> dict[str, torch.Tensor]:
    """Parameters after some steps on the training rows."""
    params, state = start, opt.init(start)
    for _ in range(steps):
        grads = torch.func.grad(loss)(params, train)
        updates, state = opt.update(grads, state, params)
        params = optcore.apply_updates(params, updates, inplace=False)
    return params


opt = optcore.adamw(lr={"w": 0.05, "b": 0.2}, weight_decay={"w": 1.0, "b": 0.0})
params = fit(opt)
print(f"adamw with trees:      train {loss(params, train):.4f}, valid {loss(params, valid):.4f}")
opt = optcore.partition(
    {"decayed": optcore.adamw(lr=0.05, weight_decay=1.0), "free": optcore.adam(lr=0.2)},
    {"w": "decayed", "b": "free"},
)
again = fit(opt)
gap = max((params[name] - again[name]).abs().max().item() for name in params)
print(f"partition differs from trees by {gap:.1e}")

# %% [markdown]
# ## Read and set between steps
#
# `inject_hyperparams` keeps the hyperparameters in the state.

# %%
opt = optcore.inject_hyperparams(optcore.sgd)(lr=optcore.linear_schedule(0.1, 0.0, 4), momentum=0.9)
state = opt.init(start)
for step in range(4):
    _, state = opt.update(start, state, start)
    lr, momentum = (state.hyperparams[name].item() for name in ("lr", "momentum"))
    print(f"step {step}: lr {lr:.3f}, momentum {momentum:.2f}")
    state.hyperparams["momentum"] = torch.tensor(0.9 * momentum)

# %% [markdown]
# ## Learned
#
# Now one weight decay for each of the ten measurements. They are tensors that require grad, so
# the whole training run is a differentiable function of them: train, look at the validation rows,
# and follow the gradient. Weight decay in `sgd` is a penalty on the loss, here between 0 and 4
# for each weight: a larger one would make steps of this length unstable.

# %%
MEASUREMENTS = diabetes.feature_names


def decays(raw: torch.Tensor) -> torch.Tensor:
    """Any number as one between 0 and 4."""
    return 4 * raw.sigmoid()


def validation_loss(raw: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """What the validation rows cost after 60 steps with these decays."""
    decay = {"w": decays(raw), "b": 0.0}
    params = fit(optcore.sgd(lr=0.15, momentum=0.5, weight_decay=decay), steps=60)
    return loss(params, valid), params


# %% [markdown]
# First the derivative itself, against a finite difference.

# %%
raw = torch.full((10,), -4.0, requires_grad=True)
value, params = validation_loss(raw)
print(f"one decay for all, {decays(raw)[0]:.3f}: valid {value:.4f}, test {loss(params, test):.4f}")
(gradient,) = torch.autograd.grad(value, raw)
h = 1e-5
shift = h * torch.nn.functional.one_hot(torch.tensor(2), 10)  # of the body mass index
with torch.no_grad():
    difference = validation_loss(raw + shift)[0] - validation_loss(raw - shift)[0]
print(f"d/d raw decay[bmi]: {gradient[2]:.10f}, by finite difference {difference / (2 * h):.10f}")

# %% [markdown]
# The outer loop is an optimizer too: `FuncOptimizer` keeps its state.

# %%
outer = optcore.FuncOptimizer(optcore.adam(lr=0.3))
history = []
for step in range(40):
    value, params = validation_loss(raw)
    history.append((loss(params, train).item(), value.item(), loss(params, test).item()))
    if step % 10 == 0:
        print(f"outer step {step:2}: valid {history[-1][1]:.4f}, test {history[-1][2]:.4f}")
    raw = outer.step(value, raw)
value, params = validation_loss(raw)
print(f"ten learned decays:         valid {value:.4f}, test {loss(params, test):.4f}")

# %% [markdown]
# Is that more than a good single decay would do? vmap tries forty at once.

# %%
grid = torch.linspace(-5, 5, 40)
losses, candidates = torch.func.vmap(lambda one: validation_loss(one.expand(10)))(grid)
best = losses.argmin()
chosen = {name: tensor[best] for name, tensor in candidates.items()}
print(f"best single decay {decays(grid[best]):.3f}: valid {losses[best]:.4f}, ", end="")
print(f"test {loss(chosen, test):.4f}")

# %% [markdown]
# The gradient does what it was asked to do: ten decays fit the validation rows better than any
# single one. They do not fit new patients better, as the test rows show: ten numbers chosen on
# 190 rows overfit these a little.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for losses, label in zip(zip(*history, strict=True), ("train", "valid", "test"), strict=True):
    left.plot(losses, label=label)
left.set(xlabel="outer step", ylabel="mean squared error", title="Ten decays learned")
left.legend(loc="upper right", bbox_to_anchor=(1, 0.85))
right.bar(MEASUREMENTS, decays(raw).tolist())
right.axhline(decays(grid[best]).item(), color="tab:orange", label="best single decay")
right.set(ylabel="learned weight decay", title="By measurement")
right.legend()
path = Path("out/tutorials/hyperparameters.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
