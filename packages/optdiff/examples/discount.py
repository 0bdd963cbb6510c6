# SPDX-License-Identifier: Apache-2.0
r"""The discount, learned while the agent learns: meta-gradient reinforcement learning.

    python packages/optdiff/examples/discount.py

After Xu, van Hasselt and Silver, 2018, arXiv:1805.09801. An agent's policy gradient takes returns
discounted by :math:`\gamma`; what counts is the undiscounted return. With batches of episodes
:math:`\tau` before and :math:`\tau'` after a step,

.. math::
    \theta'(\gamma) = \theta - \alpha\,\nabla_\theta L(\theta, \tau; \gamma), \qquad
    \gamma \leftarrow \gamma - \beta\,\frac{\partial L(\theta'(\gamma), \tau'; 1)}{\partial\gamma} .

The step is that of ``optdiff.MetaSGD``, so that the second derivative is one call to autograd. The
game: at each of 50 moves 0.3 at once, or 1 two moves later, with noise of 1 on every reward. One
has to wait: without foresight (:math:`\gamma < \sqrt{0.3}`) the agent learns the wrong thing. But
a return with :math:`\gamma = 1` has the noise of 50 rewards in it, and learning from it is slow.
The best discount lies between, and nobody knows it beforehand. Advantages are divided by their
standard deviation, as is usual, so that the discount changes where a step goes and not how far.
This is the authors' idea on a table; they learn discounts of agents that play Atari.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optcore
import optdiff

MOVES, NOISE = 50, 1.0
AT_ONCE, LATER = 0.3, 1.0  # rewards of the two actions
FOLLOWING = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])  # state: the last two actions
REWARDS = torch.tensor([[AT_ONCE, 0.0], [AT_ONCE, 0.0]])
REWARDS = torch.cat([REWARDS, REWARDS + LATER])  # (states, actions): the older action pays now
EPISODES = 8  # before each step
LR, META_LR = 2.0, 0.1
FIXED = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)
STARTS = (0.3, 0.99)


class Episodes(NamedTuple):
    """States, actions and rewards, each ``(agents, episodes, moves)``."""

    states: Tensor
    actions: Tensor
    rewards: Tensor


class Run(NamedTuple):
    """Exact returns a move and discounts after every step: ``(steps + 1, agents)``."""

    returns: Tensor
    discounts: Tensor


class Policy(nn.Module):
    """Tables of logits for many agents that learn side by side."""

    def __init__(self, agents: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(agents, *FOLLOWING.shape))


def play(logits: Tensor, generator: torch.Generator) -> Episodes:
    """Let every agent play some episodes with its policy ``(agents, states, actions)``."""
    patient = logits.detach().softmax(-1)[..., 1]
    shape = (MOVES, len(logits), EPISODES)
    draws = torch.rand(shape, generator=generator, dtype=logits.dtype)
    noise = NOISE * torch.randn(shape, generator=generator, dtype=logits.dtype)
    state = torch.zeros(shape[1:], dtype=torch.long)
    steps = []
    for draw, disturbed in zip(draws, noise):
        action = (draw < patient.gather(1, state)).long()
        steps.append((state, action, REWARDS[state, action] + disturbed))
        state = FOLLOWING[state, action]
    return Episodes(*(torch.stack(parts, -1) for parts in zip(*steps)))


def loss(logits: Tensor, episodes: Episodes, discounts: Tensor) -> Tensor:
    """Policy gradient loss of every agent ``(agents,)``; discounts are ``(agents,)`` too."""
    later = torch.zeros_like(episodes.rewards[..., 0])
    to_go = []
    for reward in reversed(episodes.rewards.unbind(-1)):
        later = reward + discounts[:, None] * later
        to_go.append(later)
    returns = torch.stack(to_go[::-1], -1)
    advantages = returns - returns.mean(1, keepdim=True)  # of the agent's episodes, move by move
    advantages = advantages / advantages.square().mean((1, 2), keepdim=True).sqrt()
    taken = (2 * episodes.states + episodes.actions).flatten(1)
    log_probs = logits.log_softmax(-1).flatten(1).gather(1, taken).view_as(advantages)
    return -(log_probs * advantages).mean((1, 2))


def exact_return(logits: Tensor) -> Tensor:
    """Expected reward a move of every agent, by going back from the last move."""
    policy, values = logits.softmax(-1), torch.zeros_like(logits[..., 0])
    for _ in range(MOVES):
        values = (policy * (REWARDS + values[:, FOLLOWING])).sum(-1)
    return values[:, 0] / MOVES


def meta_gradient(logits: Tensor, episodes: Episodes, raw: Tensor) -> Tensor:
    """How the undiscounted loss of the stepped policies on new episodes changes with ``raw``.

    Args:
        logits: Of the policies after a step that ``raw`` was part of.
        episodes: Played by these policies.
        raw: Logits of the discounts ``(agents,)``.
    """
    outer = loss(logits, episodes, torch.ones_like(raw)).sum()  # no agent knows of another
    return torch.autograd.grad(outer, raw)[0]


def learn(
    discount: float, agents: int, steps: int, learned: bool, seed: int, done: Callable[[str], None]
) -> Run:
    """Agents learn with a discount that is kept, or learned beside them from this start."""
    generator = torch.Generator().manual_seed(seed)
    policy = Policy(agents)
    inner = optdiff.MetaSGD(policy, lr=LR)
    raw = torch.full((agents,), discount).logit().requires_grad_(learned)
    outer = optcore.Adam([raw], lr=META_LR)
    returns, discounts = [exact_return(policy.logits).detach()], [raw.detach().sigmoid()]
    episodes = play(policy.logits, generator)
    for _ in range(steps):
        inner.step(loss(policy.logits, episodes, raw.sigmoid()).sum())
        episodes = play(policy.logits, generator)
        if learned:
            raw.grad = meta_gradient(policy.logits, episodes, raw)
            outer.step()
        optdiff.stop_gradient(policy, inner)  # the discount answers for one step
        returns.append(exact_return(policy.logits).detach())
        discounts.append(raw.detach().sigmoid())
        done(f"return {returns[-1].mean():.2f}, discount {discounts[-1].median():.2f}")
    return Run(torch.stack(returns), torch.stack(discounts))


def name_of(start: float, learned: bool) -> str:
    """How a run is called in the table and the plot."""
    return f"learned, from {start:g}" if learned else f"fixed at {start:g}"


def table(runs: Mapping[str, Run]) -> Table:
    """Returns over the whole run and at its end, and the discounts that were learned."""
    moments, agents = next(iter(runs.values())).returns.shape
    shown = Table(
        title=f"return a move, {agents} agents, {moments - 1} steps",
        caption="mean ± half of the 95 % interval over agents; always patient earns "
        f"{LATER * (1 - 2 / MOVES):.2f}, never {AT_ONCE:.2f}. Discounts: median and quartiles.",
    )
    shown.add_column("discount")
    for column in ("mean over steps", "at the end", "discount found"):
        shown.add_column(column, justify="right")
    for name, run in runs.items():
        cells = [score(one.tolist()) for one in (run.returns.mean(0), run.returns[-1])]
        low, middle, high = run.discounts[-1].quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        last = f"{middle:.2f} ({low:.2f} to {high:.2f})" if name.startswith("learned") else ""
        shown.add_row(name, *(f"{one.mean:.3f} ± {one.half_width:.3f}" for one in cells), last)
    return shown


def save_figure(path: Path, runs: Mapping[str, Run]) -> None:
    """Plot learned discounts, learning curves, and the return against the discount."""
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    for i, start in enumerate(STARTS):
        name = name_of(start, True)
        low, median, high = runs[name].discounts.quantile(quartiles, dim=1)
        left.plot(median, color=f"C{i}", label=name)
        left.fill_between(range(len(low)), low, high, color=f"C{i}", alpha=0.25, linewidth=0)
        middle.plot(runs[name].returns.mean(1), color=f"C{i}", label=name)
        area = runs[name].returns.mean().item()
        right.axhline(area, color=f"C{i}", linestyle="--", label=name)
    for discount, style in ((0.3, ":"), (0.9, "-"), (1.0, "--")):
        name = name_of(discount, False)
        middle.plot(runs[name].returns.mean(1), style, color="gray", label=name)
    areas = {start: runs[name_of(start, False)].returns.mean(0).tolist() for start in FIXED}
    scores = [score(one) for one in areas.values()]
    heights, bars = [one.mean for one in scores], [one.half_width for one in scores]
    right.errorbar(list(areas), heights, bars, fmt="o-", color="gray", label="fixed")
    left.set(
        xlabel="step of the agent",
        ylabel="discount",
        ylim=(0.25, 1.02),
        title="the discount while it is learned (median, quartiles)",
    )
    middle.set(
        xlabel="step of the agent",
        ylabel="exact return a move, mean over agents",
        title="what agents earn while they learn",
    )
    right.set(
        xlabel="fixed discount",
        ylabel="exact return a move, mean over steps",
        title="whole run: learned discounts beside fixed ones",
    )
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize="small")
    figure.savefig(path, dpi=120)


def main(
    agents: Annotated[int, typer.Option(min=2, help="Agents that learn side by side.")] = 200,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the agents.")] = 200,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seeds the episodes.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/discount"),
) -> None:
    """Learn the discount of an agent from the returns that follow its steps."""
    folder("discount", out)
    torch.set_num_threads(threads)
    if smoke:
        agents, steps = 10, 30
    started, cpu = time.perf_counter(), time.process_time()
    console = Console()
    plan: Sequence[tuple[float, bool]] = [(d, False) for d in FIXED] + [(d, True) for d in STARTS]
    runs: dict[str, Run] = {}
    with Phases(console) as phases:
        for start, learned in plan:
            done = phases.start(name_of(start, learned), steps)
            runs[name_of(start, learned)] = learn(start, agents, steps, learned, seed, done)
    console.print(table(runs))
    save_figure(out / "discount.png", runs)
    record = {
        "settings": {"agents": agents, "steps": steps, "seed": seed},
        "returns": {name: run.returns.mean(1).tolist() for name, run in runs.items()},
        "discounts": {
            name_of(d, True): runs[name_of(d, True)].discounts.median(1).values.tolist()
            for d in STARTS
        },
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
