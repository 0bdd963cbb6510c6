# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# Gradients from values alone.

Some functions have no derivative to take: a library in another language, a simulator, a count of
mistakes. `optdiff.zero_order` evaluates such a function at random points around the parameters and
makes a gradient of the values. What it costs is evaluations and noise; this tutorial measures both
where the truth is known, and then tunes a model of scikit-learn that no autograd can see into.
"""

# %%
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes
from sklearn.kernel_ridge import KernelRidge

import optcore
import optdiff

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
diabetes = load_diabetes(scaled=False)
x, y = torch.from_numpy(diabetes.data), torch.from_numpy(diabetes.target)
order = torch.randperm(len(x))
train, valid, test = order[:150], order[150:300], order[300:]
x = (x - x[train].mean(0)) / x[train].std(0)
y = (y - y[train].mean()) / y[train].std()
normal = torch.distributions.Normal(0.0, 1.0)

# %% [markdown]
# ## Four methods, one truth
#
# The mean squared error of a linear model in ten weights has a gradient that we know.


# %%
def loss(w: torch.Tensor) -> torch.Tensor:
    """Mean squared error on the training rows."""
    return (x[train] @ w - y[train]).square().mean()


w = torch.zeros(10, requires_grad=True)
(true,) = torch.autograd.grad(loss(w), w)


def relative_error(repeats: int, **options: object) -> float:
    """Root mean square error of the estimate, relative to the gradient."""
    estimated = optdiff.zero_order(normal, **options)(loss)
    squares = [
        (torch.autograd.grad(estimated(w), w)[0] - true).square().sum() for _ in range(repeats)
    ]
    return (torch.stack(squares).mean().sqrt() / true.norm()).item()


samples = [4, 16, 64, 256, 1024]
errors: dict[str, list[float]] = {}
for method, evaluations in (("naive", 1), ("forward", 1), ("antithetic", 2)):
    errors[method] = [
        relative_error(100, method=method, sigma=0.1, num_samples=n // evaluations) for n in samples
    ]
    cells = ", ".join(f"{n}: {e:6.2f}" for n, e in zip(samples, errors[method], strict=True))
    print(f"{method:>10}, relative error by evaluations: {cells}")
exact = relative_error(1, method="finite_difference", sigma=0.1)
print(f"finite differences, 20 evaluations: {exact:.1e}")

# %% [markdown]
# "naive" multiplies the noise by the value itself, so its variance grows as `1 / sigma**2`: a
# baseline takes most of that away. "forward" and "antithetic" use differences of values. Theory
# gives the variance of the last for a linear function: `(d + 1) / n` of the squared gradient with
# `n` directions in `d` dimensions.

# %%
for options in ({}, {"baseline": "mean"}):
    error = relative_error(100, method="naive", sigma=0.1, num_samples=64, **options)
    print(f"naive, 64 samples, {options or 'no baseline'}: {error:.2f}")
for options in ({}, {"orthogonal": True}):
    error = relative_error(100, method="antithetic", sigma=0.1, num_samples=10, **options)
    print(f"antithetic, 10 samples, {options or 'independent directions'}: {error:.2f}")
print(f"theory for independent directions: {(11 / 10) ** 0.5:.2f}")

# %% [markdown]
# ## A black box
#
# Kernel regression by scikit-learn, with a length for every one of the ten measurements: how far
# two patients have to differ in it to count as different. The validation error is a function of
# ten logarithms of lengths and one of the penalty. Nothing in it is a torch operation, so each
# sample is a call of its own: `vectorize=False`.


# %%
def error(theta: torch.Tensor, fitted: torch.Tensor, judged: torch.Tensor) -> torch.Tensor:
    """Mean squared error on some rows after a fit to others; the mean alone costs about 1."""
    scaled = (x * torch.exp(-theta[:10])).numpy()
    model = KernelRidge(kernel="rbf", gamma=0.05, alpha=theta[10].exp().item())
    model.fit(scaled[fitted], y[fitted].numpy())
    return (torch.from_numpy(model.predict(scaled[judged])) - y[judged]).square().mean()


def validation(theta: torch.Tensor) -> torch.Tensor:
    """The function to minimize: each half of the patients is predicted from the other."""
    return (error(theta, train, valid) + error(theta, valid, train)) / 2


def test_error(theta: torch.Tensor) -> torch.Tensor:
    """The same on patients that had no say."""
    return error(theta, order[:300], test)


def tuned(estimated: Callable[..., torch.Tensor], lr: float) -> tuple[torch.Tensor, list[float]]:
    """Hyperparameters after 40 steps of Adam, and the validation errors on the way."""
    theta = torch.zeros(11, requires_grad=True)
    outer = optcore.FuncOptimizer(optcore.adam(lr=lr))
    history = []
    for _ in range(40):
        value = estimated(theta)
        history.append(value.item())
        theta = outer.step(value, theta)
    return theta.detach(), history


antithetic = optdiff.zero_order(
    normal, "antithetic", num_samples=6, sigma=0.1, orthogonal=True, vectorize=False
)(validation)
differences = optdiff.zero_order(None, "finite_difference", sigma=1e-3, vectorize=False)(validation)
start = torch.zeros(11)
print(f"one length for all: valid {validation(start):.4f}, test {test_error(start):.4f}")
curves = {}
for name, estimated, calls in (
    ("antithetic, 6 directions", antithetic, 13),
    ("finite differences", differences, 23),
):
    theta, curves[name] = tuned(estimated, lr=0.1)
    print(
        f"{name} ({calls} calls a step): valid {validation(theta):.4f}, "
        f"test {test_error(theta):.4f}"
    )

# %% [markdown]
# Both descend, the noisy one almost as far with little more than half of the calls. Eleven numbers
# fit the 300 patients better than one length for all; new patients, as the test rows show, are
# predicted worse by them. An estimate does what it was asked to do, as a gradient does.
#
# What the estimate returns is the plain value at `theta`, so it may be logged as it is. With the
# same seed it is the same estimate, and a `torch.Generator` keeps it apart from other randomness.

# %%
again = []
for _ in range(2):
    seeded = optdiff.zero_order(
        normal, num_samples=4, vectorize=False, generator=torch.Generator().manual_seed(7)
    )(validation)
    at = theta.clone().requires_grad_()
    again.append(torch.autograd.grad(seeded(at), at)[0])
print(f"two estimates from one seed are equal: {torch.equal(*again)}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for method, values in errors.items():
    left.loglog(samples, values, "o-", label=method)
left.set(
    xlabel="evaluations of the function",
    ylabel="relative error of the gradient",
    title="A gradient that is known",
)
left.legend()
left.grid(alpha=0.3)
for name, history in curves.items():
    right.plot(history, label=name)
right.set(xlabel="outer step", ylabel="validation error", title="A black box")
right.legend()
path = Path("out/tutorials/zero_order.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
