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
train, validation, test = order[:1000], order[1000:1400], order[1400:]
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
def taught(teaching: torch.Tensor, rate: torch.Tensor | float, steps: int = 10) -> nn.Module:
    """A model of its own after some steps on one image per digit."""
    model = nn.Linear(64, 10)
    opt = optdiff.MetaSGD(model, lr=rate)
    for _ in range(steps):
        opt.step(cross_entropy(model(teaching), torch.arange(10)))
    return model


def accuracy(teaching: torch.Tensor, rate: torch.Tensor | float, rows: torch.Tensor) -> float:
    """Share of some images read correctly, the mean of ten models."""
    models = [taught(teaching, rate) for _ in range(10)]
    right = [(model(pixels[rows]).argmax(1) == digits[rows]).double().mean() for model in models]
    return torch.stack(right).mean().item()


# %% [markdown]
# Whatever is chosen from here on is chosen by 400 validation images. The 397 test images are looked
# at once, at the end.
#
# First real images: ten of them picked at random, and the mean of each digit, each with the best of
# six learning rates.

# %%
by_digit = [pixels[train][digits[train] == digit] for digit in range(10)]
picked = torch.stack([rows[0] for rows in by_digit])
means = torch.stack([rows.mean(0) for rows in by_digit])
teachers = {}
for name, teaching in (("ten real images", picked), ("ten mean images", means)):
    found = {
        rate: accuracy(teaching, rate, validation) for rate in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    }
    best = max(found, key=found.get)
    teachers[name] = teaching, best
    print(f"{name}: validation accuracy {found[best]:.3f} with learning rate {best}")

# %% [markdown]
# Then learned ones, from the means. The outer loop is ordinary training, of the images and of the
# logarithm of the learning rate. Long steps serve it well, up to where ten of them no longer
# converge and the gradient explodes: hence the clipping, and outer steps that grow shorter.


# %%
def learned(image_lr: float, rate_lr: float) -> tuple[dict[int, float], torch.Tensor, torch.Tensor]:
    """Validation accuracy in the course of training, the images, the learning rate."""
    teaching = means.clone().requires_grad_()
    log_rate = torch.tensor(0.0, requires_grad=True)
    groups = [{"params": [teaching], "lr": image_lr}, {"params": [log_rate], "lr": rate_lr}]
    outer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(outer, 200)
    course = {}
    for outer_step in range(201):
        if outer_step % 25 == 0:
            course[outer_step] = accuracy(teaching.detach(), log_rate.exp().item(), validation)
        outer.zero_grad()
        model = taught(teaching, log_rate.exp())
        cross_entropy(model(pixels[train]), digits[train]).backward()
        nn.utils.clip_grad_norm_([teaching, log_rate], 1.0)
        outer.step()
        schedule.step()
    return course, teaching.detach(), log_rate.exp().detach()


runs = []
for image_lr in (0.01, 0.02, 0.05):
    for rate_lr in (0.003, 0.01):
        course, taught_by, rate = learned(image_lr, rate_lr)
        runs.append((course, taught_by, rate))
        print(
            f"outer rates {image_lr} for images, {rate_lr} for the rate: it becomes {rate:.2f}, "
            f"validation accuracy {course[200]:.3f}"
        )
course, taught_by, rate = max(runs, key=lambda run: run[0][200])
teachers["ten learned images"] = taught_by, rate

# %% [markdown]
# For comparison, the same model trained on all thousand images. Now the test images.

# %%
model = nn.Linear(64, 10)
adam = torch.optim.Adam(model.parameters(), lr=0.03)
for _ in range(200):
    adam.zero_grad()
    cross_entropy(model(pixels[train]), digits[train]).backward()
    adam.step()

results = {
    name: [accuracy(teaching, rate, rows) for rows in (validation, test)]
    for name, (teaching, rate) in teachers.items()
}
right = model(pixels).argmax(1) == digits
results["a thousand images"] = [right[rows].double().mean().item() for rows in (validation, test)]
for name, (on_validation, on_test) in results.items():
    print(f"{name}: accuracy {on_validation:.3f} on validation, {on_test:.3f} on test images")

# %%
figure = plt.figure(figsize=(11, 4), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 1.2))
curve = left.subplots()
curve.plot(list(course), list(course.values()), "o-", label="ten learned images")
for color, name in (("tab:orange", "ten mean images"), ("tab:green", "a thousand images")):
    curve.axhline(results[name][0], color=color, label=name)
curve.set(xlabel="outer step", ylabel="validation accuracy", title="After ten steps on ten images")
curve.legend(loc="center right", bbox_to_anchor=(1, 0.74))
for axes, image, digit in zip(right.subplots(2, 5).flat, taught_by, range(10), strict=True):
    axes.imshow(image.reshape(8, 8).numpy(), cmap="gray")
    axes.set(title=digit, xticks=[], yticks=[])
path = Path("out/tutorials/meta_optimizer.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
