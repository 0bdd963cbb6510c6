# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# Where a gradient stops.

A Meta optimizer keeps every step in the graph. In a long run that is more than one wants: memory
grows with every step, and an outer gradient after a few steps needs these few only.
`optdiff.stop_gradient` cuts: values stay, the history goes. This tutorial shows what has to be cut
and what happens otherwise, and then trains a net on digits with wrong labels while it learns, every
two steps, which of the labels to believe.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import optdiff

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.from_numpy(images / 16), torch.from_numpy(labels)
order = torch.randperm(len(x))
train, valid, test = order[:1000], order[1000:1050], order[1050:]
cross_entropy = nn.functional.cross_entropy


def new_net() -> nn.Module:
    """A net of its own, always the same."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


# %% [markdown]
# ## The model, and the optimizer too
#
# The moments of Adam are functions of all gradients so far. Cutting the model alone leaves that
# history alive, and its graph grows with every step.


# %%
def graph_size(tensor: torch.Tensor) -> int:
    """Number of operations that a tensor depends on."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return len(seen)


def sizes(cut: str, steps: int = 8) -> list[int]:
    """Operations behind the loss after each step."""
    net = new_net()
    opt = optdiff.MetaAdam(net, lr=0.01)
    found = []
    for _ in range(steps):
        opt.step(cross_entropy(net(x[train]), y[train]))
        found.append(graph_size(cross_entropy(net(x[train]), y[train])))
        if cut == "model":
            optdiff.stop_gradient(net)
        if cut == "model and optimizer":
            optdiff.stop_gradient(net, opt)
    return found


growth = {cut: sizes(cut) for cut in ("nothing", "model", "model and optimizer")}
for cut, found in growth.items():
    print(f"cut {cut:>20}: {found} operations behind the loss")

# %% [markdown]
# The values are the same in all three; only derivatives differ. After a cut the weights are leaves
# again, and earlier ones get no gradient:

# %%
net = new_net()
first = net[0].weight
opt = optdiff.MetaAdam(net, lr=0.01)
opt.step(cross_entropy(net(x[train]), y[train]))
before = net[0].weight
optdiff.stop_gradient(net, opt)
print(f"values kept: {torch.equal(before, net[0].weight)}; a leaf: {net[0].weight.is_leaf}")
loss = cross_entropy(net(x[valid]), y[valid])
(gradient,) = torch.autograd.grad(loss, first, allow_unused=True)
print(f"gradient of the first weights after the cut: {gradient}")

# %% [markdown]
# A state taken by reference keeps its history, so a look ahead can be undone without losing the
# graph of what came before.

# %%
net = new_net()
first = net[0].weight
opt = optdiff.MetaSGD(net, lr=0.1)
opt.step(cross_entropy(net(x[train]), y[train]))
here = optdiff.extract_state_dict(net)  # by="copy" and by="deepcopy" clone
opt.step(cross_entropy(net(x[train]), y[train]))
ahead = cross_entropy(net(x[valid]), y[valid]).item()
optdiff.recover_state_dict(net, here)
loss = cross_entropy(net(x[valid]), y[valid])
(gradient,) = torch.autograd.grad(loss, first)
print(f"two steps: {ahead:.4f}; back at one: {loss:.4f}, gradient norm {gradient.norm():.4f}")

# %% [markdown]
# ## Which labels to believe
#
# Of 1000 labels, 40 % are replaced by a wrong digit. Fifty images have labels that are known to
# be right: too few to train on alone, enough to judge by. Every training image gets a weight; two
# steps of Adam with these weights, then the loss on the fifty images, whose gradient in the
# weights goes through both steps; then a cut, and on with the same net and the same moments.

# %%
wrong = torch.rand(len(train)) < 0.4
noisy = torch.where(wrong, (y[train] + torch.randint(1, 10, (len(train),))) % 10, y[train])
print(f"{wrong.sum()} of {len(train)} labels are wrong")


def accuracy(net: nn.Module) -> float:
    """Share of the test images that are read correctly."""
    return (net(x[test]).argmax(1) == y[test]).double().mean().item()


def weighted_loss(net: nn.Module, weights: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with a weight for every image."""
    losses = cross_entropy(net(x[train]), noisy, reduction="none")
    return (weights * losses).sum() / weights.sum()


def plain(rows: torch.Tensor, answers: torch.Tensor, steps: int = 300) -> tuple[nn.Module, list]:
    """A net trained on some images by torch.optim, and its test accuracy on the way."""
    net = new_net()
    opt = torch.optim.Adam(net.parameters(), lr=0.01)
    reached = []
    for step in range(steps):
        opt.zero_grad()
        cross_entropy(net(x[rows]), answers).backward()
        opt.step()
        if step % 20 == 19:
            reached.append(accuracy(net))
    return net, reached


curves = {
    "all labels believed": plain(train, noisy)[1],
    "the fifty right ones only": plain(valid, y[valid])[1],
    "both, all believed": plain(torch.cat([train, valid]), torch.cat([noisy, y[valid]]))[1],
}
for name, reached in curves.items():
    print(f"{name}: test accuracy {reached[-1]:.3f}, at best {max(reached):.3f}")

# %%
net = new_net()
opt = optdiff.MetaAdam(net, lr=0.01)
raw = torch.zeros(len(train), requires_grad=True)
outer = torch.optim.Adam([raw], lr=0.1)
reached, largest = [], 0
for outer_step in range(150):
    for _ in range(2):
        opt.step(weighted_loss(net, raw.sigmoid()))
    loss = cross_entropy(net(x[valid]), y[valid])
    largest = max(largest, graph_size(loss))
    outer.zero_grad()
    loss.backward()
    outer.step()
    optdiff.stop_gradient(net, opt)
    if outer_step % 10 == 9:
        reached.append(accuracy(net))
    if outer_step % 50 == 49:
        weights = raw.sigmoid().detach()
        print(
            f"after {2 * outer_step + 2} steps: test accuracy {reached[-1]:.3f}, mean weight of "
            f"right labels {weights[~wrong].mean():.2f}, of wrong ones {weights[wrong].mean():.2f}"
        )
curves["weights learned"] = reached
found = ((weights < 0.5) == wrong).double().mean()
print(
    f"a weight below one half tells a wrong label from a right one in {100 * found:.0f} % of cases"
)
print(f"at most {largest} operations behind the outer loss, in 300 steps")

# %% [markdown]
# Believing all labels is good for a while, and then the net learns the wrong ones by heart. The
# learned weights slow that down and end above the fifty images alone. They do not beat a plain run
# that is stopped at its best moment, for which fifty right labels are some use too.

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
for cut, counts in growth.items():
    left.plot(range(1, len(counts) + 1), counts, "o-", label=f"cut {cut}")
left.set(xlabel="step", ylabel="operations", title="Operations behind the loss")
left.legend()
for name, values in curves.items():
    middle.plot(range(20, 301, 20), values, label=name)
middle.set(xlabel="step", ylabel="test accuracy", title="40 % wrong labels")
middle.legend()
bins = torch.linspace(0, 1, 21).tolist()
right.hist([weights[~wrong].tolist(), weights[wrong].tolist()], bins, label=["right", "wrong"])
right.set(xlabel="learned weight", ylabel="images", title="Weights of the 1000 images")
right.legend()
path = Path("out/tutorials/stop_gradient.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
