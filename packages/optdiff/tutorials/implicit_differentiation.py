# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
"""# Derivatives of solutions.

A solver finds `x` with `F(x, theta) = 0`. How it got there does not matter for the derivative of
`x` in `theta`: one linear system with the Jacobian of `F` at the solution gives it, exactly, in
memory that does not know how long the solver ran. That is the implicit function theorem, and
`optdiff.custom_root` applies it to any solver.
"""

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

import optcore
import optdiff
from optdiff import minimize
from optdiff.linear_solve import solve_cg

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %% [markdown]
# ## Ridge regression by somebody else's solver
#
# scikit-learn knows nothing of gradients. All we add is what its solution satisfies: the slope of
# the penalized squared error is zero. `theta` is the logarithm of the penalty.

# %%
features, targets = load_diabetes(return_X_y=True)
split = train_test_split(normalize(features), targets, test_size=0.33, random_state=0)
x, x_valid, y, y_valid = (torch.from_numpy(part) for part in split)


def slope(w: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    """Derivative of the penalized squared error; zero at the solution."""
    return x.T @ (x @ w - y) + len(x) * theta.exp() * w


@optdiff.custom_root(slope, solve=solve_cg())
def ridge(init: None, theta: torch.Tensor) -> torch.Tensor:
    """Weights by scikit-learn. The first argument is the initial guess, which it does not need."""
    model = Ridge(alpha=len(x) * theta.exp().item(), fit_intercept=False, tol=1e-12)
    return torch.from_numpy(model.fit(x.numpy(), y.numpy()).coef_)


def validation(theta: torch.Tensor) -> torch.Tensor:
    """Mean squared error on the other patients."""
    return (x_valid @ ridge(None, theta) - y_valid).square().mean()


theta = torch.tensor(1.0, requires_grad=True)
value = validation(theta)
(first,) = torch.autograd.grad(value, theta, create_graph=True)
(second,) = torch.autograd.grad(first, theta)
print(f"theta = 1: validation error {value:.6f}, first derivative {first:.6f}, second {second:.6f}")
h = 1e-4
around = [validation(theta.detach() + shift).item() for shift in (-h, 0.0, h)]
print(
    f"finite differences:         first derivative {(around[2] - around[0]) / (2 * h):.6f}, ",
    end="",
)
print(f"second {(around[2] - 2 * around[1] + around[0]) / h**2:.2f}")

# %% [markdown]
# With two derivatives at hand, Newton's method finds the minimum nearby in a few steps.

# %%
theta = torch.tensor(-2.0, requires_grad=True)
for outer_step in range(5):
    value = validation(theta)
    (first,) = torch.autograd.grad(value, theta, create_graph=True)
    (second,) = torch.autograd.grad(first, theta)
    print(
        f"outer step {outer_step}: theta {theta:8.5f}, validation error {value:.4f}, "
        f"derivative {first:9.1e}"
    )
    theta = (theta - first / second.abs()).detach().requires_grad_()

# %% [markdown]
# ## 64 hyperparameters
#
# Softmax regression on images of digits, with a weight decay for every pixel: 640 unknowns, no
# closed form. `optdiff.minimize` has solvers; they give numbers and a record of how it went, and
# `custom_root` adds the derivative. One hypergradient costs one linear solve, for 64
# hyperparameters as for one.

# %%
images, labels = load_digits(return_X_y=True)
rest, x_test, rest_labels, y_test = train_test_split(
    torch.from_numpy(images / 16), torch.from_numpy(labels), test_size=0.4, random_state=0
)
x_train, x_valid, y_train, y_valid = train_test_split(
    rest, rest_labels, train_size=200, random_state=0
)
cross_entropy = torch.nn.functional.cross_entropy


def objective(w: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on 200 images and the penalty."""
    penalty = 0.5 * (log_decay.exp()[:, None] * w.square()).sum()
    return cross_entropy(x_train @ w, y_train) + penalty


def record(init: torch.Tensor, log_decay: torch.Tensor) -> minimize.SolverResult:
    """What Newton's method found, and how."""
    return minimize.newton(objective, init, log_decay, tol=1e-8)


@optdiff.custom_root(torch.func.grad(objective), solve=solve_cg(rtol=1e-8))
def fit(init: torch.Tensor, log_decay: torch.Tensor) -> torch.Tensor:
    """The best weights."""
    return record(init, log_decay).solution


def accuracy(w: torch.Tensor) -> float:
    """Share of the test images that are read correctly."""
    return ((x_test @ w).argmax(1) == y_test).double().mean().item()


w = torch.zeros(64, 10)
log_decay = torch.full((64,), -4.0)
found = record(w, log_decay)
print(
    f"Newton: {found.iterations} iterations, residual {found.residual:.1e}, "
    f"converged: {bool(found.converged)}"
)

# %% [markdown]
# First the derivative, against a finite difference along a random direction.

# %%
direction = torch.nn.functional.normalize(torch.randn(64), dim=0)
at = log_decay.clone().requires_grad_()
(gradient,) = torch.autograd.grad(cross_entropy(x_valid @ fit(w, at), y_valid), at)
ends = [cross_entropy(x_valid @ fit(w, log_decay + s * direction), y_valid) for s in (h, -h)]
print(f"along a direction: {gradient @ direction:.10f}, ", end="")
print(f"by finite difference {(ends[0] - ends[1]) / (2 * h):.10f}")

# %% [markdown]
# Then the best decay that all pixels share, by vmap over six of them: each problem of the batch
# stops when it has converged.

# %%
grid = torch.linspace(-10, 0, 6)
weights = torch.func.vmap(lambda one: fit(w, one.expand(64)))(grid)
shared = torch.stack([cross_entropy(x_valid @ one, y_valid) for one in weights])
best = shared.argmin()
print(
    f"best shared decay exp({grid[best]:.0f}): validation loss {shared[best]:.4f}, "
    f"test accuracy {accuracy(weights[best]):.3f}"
)

# %% [markdown]
# And one for each pixel, from there. The solver starts at the last solution: the initial guess
# saves time and leaves no trace in the derivative.

# %%
log_decay = torch.full((64,), grid[best].item(), requires_grad=True)
outer = optcore.FuncOptimizer(optcore.adam(lr=0.3))
history = []
w = weights[best]
for outer_step in range(20):
    w = fit(w.detach(), log_decay)
    value = cross_entropy(x_valid @ w, y_valid)
    history.append(value.item())
    if outer_step % 5 == 0:
        print(
            f"outer step {outer_step:2}: validation loss {value:.4f}, "
            f"test accuracy {accuracy(w):.3f}"
        )
    log_decay = outer.step(value, log_decay)
w = fit(w.detach(), log_decay)
value = cross_entropy(x_valid @ w, y_valid)
print(f"64 learned decays: validation loss {value:.4f}, test accuracy {accuracy(w):.3f}")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
left.plot(history, label="one decay per pixel")
left.axhline(shared[best].item(), color="tab:orange", label="best shared decay")
left.set(xlabel="outer step", ylabel="validation loss", title="Learning 64 weight decays")
left.legend()
shown = right.imshow(log_decay.detach().reshape(8, 8).numpy())
figure.colorbar(shown, ax=right, label="logarithm of the decay")
right.set(title="By pixel")
path = Path("out/tutorials/implicit_differentiation.png")
path.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(path, dpi=120)
print(f"plot in {path}")
