# SPDX-License-Identifier: Apache-2.0
r"""Learners that see each other learn: LOLA in the iterated prisoner's dilemma.

    python packages/optdiff/examples/lola.py

Two players remember the last moves. A policy is five logits: the chance to cooperate at the start
and after CC, CD, DC, DD (own move first). With transition matrix :math:`M` between these four
outcomes, first outcomes :math:`p_0` and payoffs :math:`r^i`, the discounted return is exact,

.. math::
    V^i(\theta^1, \theta^2) = p_0^\top (I - \gamma M)^{-1} r^i .

Naive learners follow :math:`\nabla_{\theta^1} V^1` and end in mutual defection, -2 a move. A LOLA
learner (Foerster et al., 2018, arXiv:1709.04326) looks through the next step of the other one,

.. math::
    \nabla_{\theta^1} V^1\bigl(\theta^1,\ \theta^2 + \eta\,\nabla_{\theta^2} V^2(\theta^1, \theta^2)
    \bigr),

where the step is ``optcore.sgd`` in ``optdiff.unroll``. The same runs on games that are sampled:
DiCE (Foerster et al., 2018, arXiv:1802.05098; ``dice.py``) makes derivatives of every order right
in expectation. Many pairs learn side by side, one row of a tensor each. From exact returns they
take plain gradient steps, from games those of Adam, and start near chances of one half.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple, TypeAlias

import torch
import typer
from dice import dice
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Phases, folder, score
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import logsigmoid

import optcore
import optdiff

MEMORIES = ("start", "CC", "CD", "DC", "DD")  # own move first
SWAPPED = [0, 1, 3, 2, 4]  # the same memory as the other player has it
PAYOFFS = ((-1.0, -3.0, 0.0, -2.0), (-1.0, 0.0, -3.0, -2.0))  # of the outcomes, for both
GAMMA = 0.96
TIT_FOR_TAT = torch.tensor([True, True, False, True, False])
PAPER = {"naive, exact": "-1.98 (0.14)", "LOLA, exact": "-1.06 (0.19)"}
GAMES, MOVES = 128, 100  # of sampled play, for every pair and estimate
Returns: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of two policies, own first: (2, pairs)


class Learning(NamedTuple):
    """How the players of a pair learn."""

    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer]
    ahead_lr: float  # of the step that LOLA sees the other take
    spread: float  # standard deviation of the first logits


EXACT = Learning(functools.partial(optcore.SGD, lr=1.0), 3.0, 1.0)
ON_GAMES = Learning(functools.partial(optcore.Adam, lr=0.1), 1.0, 0.1)


class Run(NamedTuple):
    """What a way of learning left."""

    curve: Tensor  # (steps + 1, pairs): returns a move of the first players
    policies: Tensor  # (pairs, 2, 5): chances to cooperate at the end


def values(mine: Tensor, other: Tensor) -> Tensor:
    """What both players expect after each memory, from logits ``(..., 5)``: ``(2, ..., 5)``."""
    p, q = mine.sigmoid(), other.sigmoid()[..., SWAPPED]
    outcomes = torch.stack([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)], -1)
    payoffs = torch.tensor(PAYOFFS, dtype=mine.dtype).mT
    later = torch.eye(4, dtype=mine.dtype) - GAMMA * outcomes[..., 1:, :]
    after = torch.linalg.solve(later, payoffs.expand(*later.shape[:-1], 2))
    return (outcomes @ after).movedim(-1, 0)


def exact(mine: Tensor, other: Tensor) -> Tensor:
    """Discounted returns of both players in the endless game: ``(2, ...)``."""
    return values(mine, other)[..., 0]


def of_memories(table: Tensor, memories: Tensor) -> Tensor:
    """Entries of ``(..., pairs, 5)`` for memories ``(pairs, games, moves)``."""
    places = memories.flatten(1).expand(*table.shape[:-1], -1)
    return table.gather(-1, places).unflatten(-1, memories.shape[1:])


def log_probs(policy: Tensor, memories: Tensor, defects: Tensor) -> Tensor:
    """Logarithms of the chances ``(pairs, games, moves)`` of one player's moves."""
    logits = of_memories(policy, memories)
    return logsigmoid(torch.where(defects, -logits, logits))


@dataclass(frozen=True)
class Sampled:
    """Returns estimated from games played now; derivatives of every order by DiCE."""

    games: int
    moves: int
    generator: torch.Generator

    def play(self, mine: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Memories before the moves, and outcomes 0 to 3: each ``(pairs, games, moves)``."""
        chances = torch.stack([mine, other[:, SWAPPED]]).detach().sigmoid()
        draws = torch.rand(
            self.moves, 2, len(mine), self.games, generator=self.generator, dtype=mine.dtype
        )
        memory = torch.zeros(len(mine), self.games, dtype=torch.long)
        memories, outcomes = [], []
        for draw in draws:
            defects = (draw >= chances.gather(-1, memory.expand(2, -1, -1))).long()
            memories.append(memory)
            outcomes.append(2 * defects[0] + defects[1])
            memory = 1 + outcomes[-1]
        return torch.stack(memories, -1), torch.stack(outcomes, -1)

    def __call__(self, mine: Tensor, other: Tensor) -> Tensor:
        """Mean DiCE objective of both players over the games: ``(2, pairs)``."""
        memories, outcomes = self.play(mine, other)
        both = log_probs(mine, memories, outcomes >= 2)
        both = both + log_probs(other[:, SWAPPED], memories, outcomes % 2 == 1)
        payoffs = torch.tensor(PAYOFFS, dtype=mine.dtype)[:, outcomes]
        baseline = of_memories(values(mine, other).detach(), memories)  # an exact critic
        return dice(both, payoffs, baseline, GAMMA).mean(-1)


def looked_ahead(returns: Returns, mine: Tensor, other: Tensor, steps: int, lr: float) -> Tensor:
    """The other's policy after it has learned for some steps, a function of mine."""
    inner = optcore.sgd(lr)

    def step(other: Tensor, i: int, mine: Tensor) -> Tensor:
        loss = -returns(other, mine)[0].sum()  # pairs do not mix: each has its own gradient
        (gradient,) = torch.autograd.grad(loss, other, create_graph=True)
        updates, _ = inner.update(gradient, inner.init(other), other)
        return optcore.apply_updates(other, updates)

    return optdiff.unroll(step, other, steps, mine)


def learn(
    returns: Returns,
    learning: Learning,
    ahead: int,
    pairs: int,
    steps: int,
    seed: int,
    done: Callable[[str], None],
) -> Run:
    """Both players of every pair learn at once; curves are exact returns of the first players."""
    generator = torch.Generator().manual_seed(2 * seed)
    first = learning.spread * torch.randn(2, pairs, 5, generator=generator)
    players = [logits.clone().requires_grad_() for logits in first]
    optimizer = learning.optimizer(players)
    curve = [exact(*players)[0].detach()]
    for _ in range(steps):
        gradients = []
        for mine, other in (players, players[::-1]):
            then = looked_ahead(returns, mine, other, ahead, learning.ahead_lr)
            gradients += torch.autograd.grad(-returns(mine, then)[0].sum(), mine)
        for player, gradient in zip(players, gradients):
            player.grad = gradient
        optimizer.step()
        curve.append(exact(*players)[0].detach())
        done(f"return a move {(1 - GAMMA) * curve[-1].mean():.2f}")
    return Run((1 - GAMMA) * torch.stack(curve), torch.stack(players, 1).detach().sigmoid())


def tit_for_tat(policies: Tensor) -> Tensor:
    """Which policies are tit-for-tat when chances are rounded: cooperate, then do as the other."""
    return ((policies > 0.5) == TIT_FOR_TAT).all(-1)


def table(runs: Mapping[str, Run]) -> Table:
    """Last returns and policies of each way of learning, and the numbers of the paper."""
    shown = Table(
        title="return a move (-2: both defect, -1: both cooperate)",
        caption="mean ± half of the 95 % interval over pairs (standard deviation); tit-for-tat: "
        "share of policies that are it when rounded. DiCE: the baseline of sampled games is the "
        "exact value. Paper: Foerster et al., 2018, Table 3, exact gradients, LOLA's step to first "
        "order, other rates; tit-for-tat there 20.8 % and 81.0 %, by a rule not known to us.",
    )
    shown.add_column("learners")
    shown.add_column("pairs", justify="right")
    for name in ("return", "tit-for-tat", "paper"):
        shown.add_column(name, justify="right")
    for name, run in runs.items():
        last = run.curve[-1]
        mean, half_width = score(last.tolist())
        cell = f"{mean:.2f} ± {half_width:.2f} ({last.std():.2f})"
        share = tit_for_tat(run.policies).double().mean().item()
        shown.add_row(name, str(len(last)), cell, f"{100 * share:.1f} %", PAPER.get(name, ""))
    return shown


def save_figure(path: Path, runs: Mapping[str, Run]) -> None:
    """Plot the returns over the steps, and what was learned."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    width = 0.8 / len(runs)
    for i, (name, run) in enumerate(runs.items()):
        low, middle, high = run.curve.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=1)
        left.plot(middle, "-" if i < 2 else "--", color=f"C{i}", label=name)
        left.fill_between(range(len(middle)), low, high, color=f"C{i}", alpha=0.2, linewidth=0)
        places = torch.arange(5) + (i - (len(runs) - 1) / 2) * width
        right.bar(places, run.policies.flatten(0, 1).mean(0), width, color=f"C{i}", label=name)
    for height, text in ((-1, "both cooperate"), (-2, "both defect")):
        left.axhline(height, color="gray", linestyle=":")
        left.text(left.get_xlim()[1], height + 0.02, text, ha="right", color="gray")
    left.set(
        xlabel="learning step",
        ylabel="return per move",
        ylim=(-2.1, -0.8),
        title="LOLA learns to cooperate (median over pairs, band: middle half)",
    )
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names))
    right.hlines(TIT_FOR_TAT.double(), torch.arange(5) - 0.45, torch.arange(5) + 0.45, "k", ":")
    right.set(
        xticks=range(5),
        xticklabels=MEMORIES,
        xlabel="last moves, own first",
        ylabel="chance to cooperate",
        title="learned policies, mean (dotted: tit-for-tat)",
    )
    figure.savefig(path, dpi=120)


def main(
    pairs: Annotated[int, typer.Option(min=2, help="Pairs that learn from exact returns.")] = 50,
    steps: Annotated[int, typer.Option(min=1, help="Learning steps of these.")] = 500,
    sampled_pairs: Annotated[int, typer.Option(min=2, help="Pairs that learn from games.")] = 20,
    sampled_steps: Annotated[int, typer.Option(min=1, help="Learning steps of these.")] = 400,
    ahead: Annotated[int, typer.Option(min=1, help="Steps of the other that LOLA sees.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seeds policies and games.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch.")] = 1,
    smoke: Annotated[bool, typer.Option("--smoke", help="A run of seconds, as a test.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for what is saved.")] = Path("out/lola"),
) -> None:
    """Play the iterated prisoner's dilemma: naive learners, and learners that see them learn."""
    folder("lola", out)
    if smoke:
        pairs, steps, sampled_pairs, sampled_steps = 5, 60, 2, 20
    torch.set_num_threads(threads)
    started, cpu = time.perf_counter(), time.process_time()
    console = Console()
    games = Sampled(GAMES, MOVES, torch.Generator().manual_seed(2 * seed + 1))
    kinds: dict[str, tuple[Returns, Learning, int, int]] = {
        "exact": (exact, EXACT, pairs, steps),
        "DiCE": (games, ON_GAMES, sampled_pairs, sampled_steps),
    }
    runs: dict[str, Run] = {}
    with Phases(console) as phases:
        for kind, (returns, learning, number, count) in kinds.items():
            for learners, seen in (("naive", 0), ("LOLA", ahead)):
                name = f"{learners}, {kind}"
                done = phases.start(name, count, lines=4)
                runs[name] = learn(returns, learning, seen, number, count, seed, done)
    console.print(table(runs))
    save_figure(out / "lola.png", runs)
    record = {
        "settings": {
            "pairs": {"exact": pairs, "DiCE": sampled_pairs},
            "steps": {"exact": steps, "DiCE": sampled_steps},
            "ahead": ahead,
            "seed": seed,
        },
        "returns": {name: run.curve[-1].tolist() for name, run in runs.items()},
        "curves": {name: run.curve.mean(1).tolist() for name, run in runs.items()},
        "policies": {name: run.policies.mean((0, 1)).tolist() for name, run in runs.items()},
        "tit_for_tat": {n: tit_for_tat(r.policies).double().mean().item() for n, r in runs.items()},
    }
    (out / "results.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
    took, cpu = time.perf_counter() - started, time.process_time() - cpu
    typer.echo(f"{took:.0f} s ({cpu:.0f} s of CPU); plot and numbers are in {out}/")


if __name__ == "__main__":
    typer.run(main)
