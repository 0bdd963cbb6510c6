# SPDX-License-Identifier: Apache-2.0
"""The ensembles: many networks at once are the same networks one by one."""

import importlib
import json
import math
from pathlib import Path

import pytest
import torch

import optcore

EXAMPLES = Path(__file__).parents[1] / "examples"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(EXAMPLES))
    ensembles, networks = map(importlib.import_module, ("ensembles", "many_networks"))


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (optcore.adam, torch.optim.Adam),
        (optcore.adamw, torch.optim.AdamW),
        (optcore.rmsprop, torch.optim.RMSprop),
        (optcore.sgd, torch.optim.SGD),
    ],
    ids=["adam", "adamw", "rmsprop", "sgd"],
)
def test_networks_at_once_are_those_one_by_one(rule, optimizer):
    seeds, rates = (3, 4), (1e-3, 1e-2, 3e-2)
    data = ensembles.load(0).train
    nets, by_network = networks.members(seeds, rates)
    rows = networks.batches(seeds, len(rates), 10)
    together = networks.train_together(nets, by_network, data, rows, rule)
    start = networks.members(seeds, rates)[0]
    alone = networks.train_one_by_one(nets, by_network, data, rows, optimizer)
    assert networks.apart(together, alone).max() < 1e-11
    untrained = torch.func.stack_module_state(start)[0]
    assert networks.apart(together, untrained).min() > 1e-4


def test_networks_of_a_seed_start_alike_and_see_the_same():
    nets, rates = networks.members((0, 1), (0.1, 0.2))
    assert rates.tolist() == [0.1, 0.2, 0.1, 0.2]
    first = [next(net.parameters()) for net in nets]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    rows = networks.batches((0, 1), 2, 11)
    assert rows.shape == (4, 11, networks.BATCH)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[1], rows[2])
    epoch = networks.TRAIN // networks.BATCH
    assert rows[0, :epoch].unique().tolist() == list(range(networks.TRAIN))


def test_quality_and_that_of_ensembles_by_size():
    sure, wrong = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.2, 0.8]])
    label = torch.tensor([0])
    assert ensembles.quality(sure, label) == (1.0, pytest.approx(-math.log(0.9)))
    found = ensembles.by_size(torch.stack([sure, wrong, wrong]), label)
    losses = {size: one.log_loss for size, one in found.items()}
    mean_of_one = -(math.log(0.9) + 2 * math.log(0.2)) / 3
    assert losses == pytest.approx({1: mean_of_one, 2: -math.log(0.55)})
    assert {size: one.accuracy for size, one in found.items()} == {1: pytest.approx(1 / 3), 2: 1.0}


def test_votes_are_those_of_each_network():
    nets, _ = networks.members((0, 1, 2), (0.1,))
    x = ensembles.load(0).test.x[:4]
    found = ensembles.votes(torch.func.stack_module_state(nets)[0], x)
    torch.testing.assert_close(found, torch.stack([net(x).softmax(1) for net in nets]))


def test_the_learning_rate_is_the_best_on_validation_images(tmp_path, monkeypatch):
    data, rates, steps = ensembles.load(0), ensembles.RATES, 20
    scrambled = data._replace(test=data.test._replace(y=data.test.y.flip(0)))
    monkeypatch.setattr(ensembles, "load", lambda seed: scrambled)
    monkeypatch.setattr(ensembles, "save_figure", lambda *_: None)
    ensembles.run((0, 1), steps, (), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["chosen"]

    nets, by_network = networks.members((0, 1), rates)
    rows = networks.batches((0, 1), len(rates), steps)
    params = networks.train_together(nets, by_network, data.train, rows, optcore.adam)
    united = ensembles.votes(params, data.validation.x).unflatten(0, (2, -1)).mean(0)
    losses = [torch.nn.functional.nll_loss(p.log(), data.validation.y) for p in united]
    assert found == rates[int(torch.stack(losses).argmin())]
