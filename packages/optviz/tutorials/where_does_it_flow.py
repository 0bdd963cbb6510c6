# SPDX-License-Identifier: Apache-2.0
"""Where does the meta-gradient flow? A script in cells; it opens as a notebook too."""

# %% [markdown]
# # Where does the meta-gradient flow?
#
# An outer parameter `phi` weighs the examples of an inner loss. Three steps of Adam, then an outer
# loss on other data: does a gradient reach `phi`, through what, and how large is it?

# %%
import torch

import optdiff
import optviz

torch.manual_seed(0)
x, y, x_val, y_val = (torch.randn(16, width) for width in (4, 1, 4, 1))
phi = torch.zeros(16, 1, requires_grad=True)


def outer_loss(steps: int, first_order: bool = False) -> torch.Tensor:
    """The outer loss after some inner steps."""
    model = torch.nn.Linear(4, 1)
    inner = optviz.instrument(optdiff.MetaAdam(model, lr=0.1, first_order=first_order))
    for _ in range(steps):
        inner.step((phi.sigmoid() * (model(x) - y) ** 2).mean())
    with optviz.scope("outer loss"):
        return ((model(x_val) - y_val) ** 2).mean()


# %% [markdown]
# `instrument` makes every step a scope: forward, gradient, each transformation, apply. A graph at
# the end of a cell shows itself: click a box, open it, search, or press `+`.

# %%
loss = outer_loss(steps=3)
optviz.draw({"loss": loss}, {"phi": phi})

# %% [markdown]
# `to_txt()` says the same for terminals. Numbers on the arrows are gradient norms: `flow` measures
# them by one backward pass and keeps `.grad` as it is. Which step does `phi` learn most from?

# %%
graph = optviz.draw({"loss": loss}, {"phi": phi})
measured = optviz.flow(graph, loss)
print(measured.to_txt())
from_phi = [edge for edge in measured.edges if measured.nodes[edge.source].name == "phi"]
print({measured.nodes[edge.target].path[0]: f"{edge.norm:.1e}" for edge in from_phi})

# %% [markdown]
# A hundred steps make six thousand operations. Steps that repeat are drawn once.

# %%
optviz.draw({"loss": outer_loss(steps=100)}, {"phi": phi})

# %% [markdown]
# Where is the memory? And what if a gradient is missing? Under `record()` the first cut is named,
# with its line.

# %%
print(graph.saved_bytes(by="step"))
with optviz.record():
    loss = outer_loss(steps=3, first_order=True)
answer = optviz.why_no_grad(phi, loss)
print(answer.kind, "-", answer.message.split(", at ")[0])
assert answer.kind == "create_graph"

# %% [markdown]
# An inner problem that is solved instead of unrolled is one node. It tells how the solver went, and
# after a backward pass how that of the derivative did.


# %%
def objective(w: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """A ridge regression with weighted examples."""
    return (phi.sigmoid().squeeze() * (x @ w - y.squeeze()) ** 2).mean() + 0.1 * (w**2).sum()


@optdiff.custom_root(torch.func.grad(objective), solve=optdiff.linear_solve.solve_cg())
def solve(init: torch.Tensor, phi: torch.Tensor) -> torch.Tensor:
    """The regression's weights."""
    return optdiff.minimize.newton(objective, init, phi).solution


loss = ((x_val @ solve(torch.zeros(4), phi) - y_val.squeeze()) ** 2).mean()
implicit = optviz.flow(optviz.draw({"loss": loss}, {"phi": phi}), loss)
told = dict(implicit.node("Implicit").statistics)
print(told["minimize.newton: iterations"], "step,", told["backward cg: iterations"], "products")
