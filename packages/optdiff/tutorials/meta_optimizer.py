# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# A step that stays in the graph.

`optdiff.MetaSGD`, `MetaAdam` and their relatives train a module as an optimizer does, except that
the new weights are functions of the old ones and of everything else the loss depended on. So a
loss after a few steps has a gradient in the initial weights, in the learning rate and in the data.
At the end of this tutorial ten images are learned, one for each digit, that teach a model more in
ten steps than ten real ones do.
"""

# %%
import copy
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import optcore
import optdiff

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
pixels, digits = torch.from_numpy(images / 16), torch.from_numpy(labels)
order = torch.randperm(len(pixels))
train, test = order[:1000], order[1000:]
net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))

# %% [markdown]
# ## One step
#
# After `step` the module holds tensors with a history. The parameters of before are their leaves.

# %%
x, y = pixels[train[:20]], digits[train[:20]]
cross_entropy = nn.functional.cross_entropy
initial = dict(net.named_parameters())
start = optdiff.extract_state_dict(net)
lr = torch.tensor(0.1, requires_grad=True)

opt = optdiff.MetaSGD(net, lr=lr)
opt.step(cross_entropy(net(x), y))
print(f"after a step: is the weight a leaf? {net[0].weight.is_leaf}", end="; ")
print(f"its history ends with {net[0].weight.grad_fn.name()}")

# %% [markdown]
# `extract_state_dict` took the state of before, `recover_state_dict` gives it back, as often as
# one likes: that is how several tasks begin at one place.

# %%
optdiff.recover_state_dict(net, start)
print(f"given back: the same tensor? {net[0].weight is initial['0.weight']}")

# %% [markdown]
# ## The gradient of three steps
#
# Any loss that one computes after the loop reaches the first weights and the learning rate. A
# finite difference says the same.


# %%
def after_three_steps(rate: torch.Tensor | float) -> torch.Tensor:
    """Loss on twenty images after three steps with momentum, from the same start."""
    optdiff.recover_state_dict(net, start)
    opt = optdiff.MetaSGD(net, lr=rate, momentum=0.9)
    for _ in range(3):
        opt.step(cross_entropy(net(x), y))
    loss = cross_entropy(net(x), y)
    optdiff.recover_state_dict(net, start)
    return loss


d_lr, d_weight = torch.autograd.grad(after_three_steps(lr), (lr, initial["0.weight"]))
h = 1e-5
difference = (after_three_steps(0.1 + h) - after_three_steps(0.1 - h)) / (2 * h)
print(f"d loss / d lr: {d_lr:.10f}, by finite difference {difference:.10f}")
print(f"norm of the gradient in the first layer's initial weights: {d_weight.norm():.6f}")

# %% [markdown]
# Any transformation of `optcore` makes a Meta optimizer, chains and clipping included; a module in
# the middle of it all can be copied.

# %%
chained = optcore.chain(optcore.clip_by_global_norm(1.0), optcore.adam(lr=lr))
opt = optdiff.MetaOptimizer(net, chained)
opt.step(cross_entropy(net(x), y))
twin = copy.deepcopy(net)
print(f"a copy has parameters of its own: {twin[0].weight.is_leaf}")
optdiff.recover_state_dict(net, start)

# %% [markdown]
# ## Ten images instead of a thousand
#
# A linear model with random weights takes ten steps on ten images. What it then costs on a thousand
# real ones is a function of the ten images and of the learning rate, and so are its derivatives.


# %%
def taught(teaching: torch.Tensor, rate: torch.Tensor, steps: int = 10) -> nn.Module:
    """A model of its own after some steps on one image per digit."""
    model = nn.Linear(64, 10)
    opt = optdiff.MetaSGD(model, lr=rate)
    for _ in range(steps):
        opt.step(cross_entropy(model(teaching), torch.arange(10)))
    return model


def test_accuracy(teaching: torch.Tensor, rate: torch.Tensor) -> float:
    """Share of the 797 test images read correctly, the mean of ten models."""
    models = [taught(teaching, rate) for _ in range(10)]
    right = [(model(pixels[test]).argmax(1) == digits[test]).double().mean() for model in models]
    return torch.stack(right).mean().item()


# %% [markdown]
# First with real images: ten of them picked at random, and the mean of each digit, each with the
# best of six learning rates.

# %%
choices = torch.tensor([0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
by_digit = [pixels[train][digits[train] == digit] for digit in range(10)]
picked = torch.stack([rows[0] for rows in by_digit])
means = torch.stack([rows.mean(0) for rows in by_digit])
for name, teaching in (("ten real images", picked), ("ten mean images", means)):
    best = max(test_accuracy(teaching, rate) for rate in choices)
    print(f"{name}: test accuracy {best:.3f}")
start_accuracy = best

# %% [markdown]
# Then learned, from the means. The outer loop is ordinary training, of the images and of the
# logarithm of the learning rate. It likes long steps, up to where ten of them no longer converge
# and the gradient explodes: hence the clipping, and the small rate for the rate.

# %%
teaching = means.clone().requires_grad_()
log_lr = torch.tensor(0.0, requires_grad=True)
outer = torch.optim.Adam([{"params": [teaching], "lr": 0.02}, {"params": [log_lr], "lr": 0.003}])
checked = {}
for outer_step in range(201):
    if outer_step % 40 == 0:
        rate = log_lr.exp().detach()
        checked[outer_step] = test_accuracy(teaching.detach(), rate)
        print(
            f"outer step {outer_step:3}: learning rate {rate:.2f}, "
            f"test accuracy {checked[outer_step]:.3f}"
        )
    outer.zero_grad()
    model = taught(teaching, log_lr.exp())
    loss = cross_entropy(model(pixels[train]), digits[train])
    loss.backward()
    nn.utils.clip_grad_norm_([teaching, log_lr], 1.0)
    outer.step()

# %% [markdown]
# For comparison, the same model trained on all thousand images.

# %%
model = nn.Linear(64, 10)
adam = torch.optim.Adam(model.parameters(), lr=0.03)
for _ in range(200):
    adam.zero_grad()
    cross_entropy(model(pixels[train]), digits[train]).backward()
    adam.step()
full = (model(pixels[test]).argmax(1) == digits[test]).double().mean().item()
print(f"200 steps of Adam on the thousand images: test accuracy {full:.3f}")

# %%
figure = plt.figure(figsize=(11, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
curve = left.subplots()
curve.plot(list(checked), list(checked.values()), "o-", label="ten learned images")
curve.axhline(start_accuracy, color="tab:orange", label="ten mean images, best rate of six")
curve.axhline(full, color="tab:green", label="a thousand images")
curve.set(xlabel="outer step", ylabel="test accuracy", title="After ten steps on ten images")
curve.legend(loc="upper right", bbox_to_anchor=(1, 0.93))
for axes, image, digit in zip(right.subplots(2, 5).flat, teaching.detach(), range(10), strict=True):
    axes.imshow(image.reshape(8, 8).numpy(), cmap="gray")
    axes.set(title=digit, xticks=[], yticks=[])
path = Path("out/tutorials/meta_optimizer.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
