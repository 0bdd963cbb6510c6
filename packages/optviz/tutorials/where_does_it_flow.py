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
# `instrument` makes every step a scope. In a notebook the last line of a cell shows the viewer;
# `to_txt()` is for terminals.

# %%
loss = outer_loss(steps=3)
graph = optviz.draw({"loss": loss}, {"phi": phi})
print(graph.to_txt())

# %% [markdown]
# Numbers on the arrows: `flow` runs one backward pass and keeps `.grad` as it is.

# %%
measured = optviz.flow(graph, loss)
print([f"{e.norm:.1e}" for e in measured.edges if measured.nodes[e.source].name == "phi"])

# %% [markdown]
# Where is the memory? And what if a gradient is missing? Under `record()` the first cut is named.

# %%
print(graph.saved_bytes(by="step"))
with optviz.record():
    loss = outer_loss(steps=3, first_order=True)
answer = optviz.why_no_grad(phi, loss)
print(answer.kind, "-", answer.message.split(", at ")[0])
assert answer.kind == "create_graph"
