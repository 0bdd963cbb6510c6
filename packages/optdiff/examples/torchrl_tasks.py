# SPDX-License-Identifier: Apache-2.0
"""The tasks of ``decision_processes.py`` as an environment of torchrl, and who plays them."""

from __future__ import annotations

import torch
from decision_processes import EPISODES, HORIZON, Episodes, Tasks, draw, with_baseline
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, TensorDictModule
from torch import Tensor, nn
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import ProbabilisticActor


class TabularTasks(EnvBase):
    """Many tasks at once, of each some episodes: the batch size is ``(tasks, episodes)``.

    The state is read from the tensordict of a step, and nowhere kept. Nothing ends an episode; its
    length is the ``max_steps`` of a rollout.
    """

    def __init__(self, tasks: Tasks, seed: int, episodes: int = EPISODES) -> None:
        count, states, actions = tasks.rewards.shape
        batch = torch.Size([count, episodes])
        super().__init__(batch_size=batch, device=tasks.rewards.device)
        self.tasks = tasks
        self.observation_spec = Composite(state=Categorical(states, shape=batch), shape=batch)
        self.action_spec = Categorical(actions, shape=batch)
        self.reward_spec = Unbounded((*batch, 1), dtype=tasks.rewards.dtype)
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator = torch.Generator()
        if seed is not None:
            self.generator.manual_seed(seed)

    def _reset(self, tensordict: TensorDictBase | None = None, **_: object) -> TensorDict:
        state = torch.full(self.batch_size, self.tasks.start)  # torchrl takes what it asked for
        return TensorDict({"state": state}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        each = torch.arange(len(self.tasks.rewards))[:, None]
        at = each, tensordict["state"], tensordict["action"]
        reward = self.tasks.rewards[at]
        noise = torch.randn(reward.shape, generator=self.generator, dtype=reward.dtype)
        return TensorDict(
            {
                "state": draw(self.tasks.transitions[at], self.generator),
                "reward": (reward + self.tasks.noise * noise)[..., None],
                "done": torch.zeros(*self.batch_size, 1, dtype=torch.bool),
            },
            self.batch_size,
        )


class Change(nn.Module):
    """What is added to the common logits for each task ``(tasks, states, actions)``."""

    def __init__(self, common: Tensor, tasks: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(common.new_zeros(tasks, *common.shape))


class Policies(nn.Module):
    """Logits of actions by state, for each task: common ones and a change."""

    def __init__(self, common: Tensor, tasks: int) -> None:
        super().__init__()
        self.common = common
        self.change = Change(common, tasks)

    def table(self) -> Tensor:
        """The logits ``(tasks, states, actions)``, with their graph."""
        return self.common + self.change.logits

    def forward(self, state: Tensor) -> Tensor:
        """Logits ``(tasks, episodes, actions)`` where each episode is."""
        logits = self.table()
        return logits[torch.arange(len(logits))[:, None], state]


def actor(policies: Policies) -> ProbabilisticActor:
    """The policies as torchrl plays them: from ``state`` over ``logits`` to a drawn ``action``."""
    return ProbabilisticActor(
        TensorDictModule(policies, in_keys=["state"], out_keys=["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        default_interaction_type=InteractionType.RANDOM,
    )


def collect(policies: Policies, tasks: Tasks, seed: int) -> Episodes:
    """Play every task with its policy in torchrl; all randomness comes from the seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # what actions are drawn from
        played = TabularTasks(tasks, seed + 1).rollout(HORIZON, actor(policies))
    return with_baseline(played["state"], played["action"], played["next", "reward"].squeeze(-1))
