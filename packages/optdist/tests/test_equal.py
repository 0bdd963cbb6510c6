# SPDX-License-Identifier: Apache-2.0
"""Value and gradient of a parallelized function equal those of one process."""

import json

import pytest
import torch

TOLERANCE = 1e-12


MODES = ("explicit", "implicit", "zero-order")


@pytest.fixture
def errors(finish, tmp_path):
    """Return a function that runs the cases with a word on so many workers: their errors."""

    def run(word, nproc):
        path = tmp_path / "found.json"
        finish("equal.py", path, word, nproc=nproc)
        return json.loads(path.read_text())

    return run


def test_like_one_process(errors):
    found = errors("", 2)
    refused = found.pop("higher orders")
    assert len(found) == 21
    assert {n: f for n, f in found.items() if max(f.values()) > TOLERANCE} == {}
    assert [text.partition(":")[0] for text in refused] == ["parallelize", "grad"]
    assert all("do not cross processes" in text for text in refused)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 3, 4, 8])
def test_maml_of_all_modes_on_uneven_batches(errors, nproc):
    found = errors(" rows", nproc)
    assert [*found] == [f"{mode}, {rows} rows" for mode in MODES for rows in (2, 5, 15)]
    assert max(error for case in found.values() for error in case.values()) <= TOLERANCE


def test_the_listing_of_the_slides_runs_under_torchrun(finish, tmp_path):
    path = tmp_path / "model.pt"
    starter = ("torch.distributed.run", "--nproc_per_node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=127.0.0.1:0")  # fmt: skip
    done = finish("slides.py", path, starter=starter)
    assert done.out == "chunks 2\n"
    saved = torch.load(path, weights_only=True)

    torch.manual_seed(7)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    for batch in [torch.randn(n, 3) for n in (5, 4, 1, 7)]:
        optimizer.zero_grad()
        (net(batch).squeeze(-1) - batch.sum(dim=-1)).square().mean().backward()
        optimizer.step()
    for name, wanted in net.state_dict().items():
        torch.testing.assert_close(saved[f"net.{name}"], wanted, rtol=0, atol=TOLERANCE)


def test_the_listing_of_the_slides_runs_alone(finish, tmp_path):
    done = finish("slides.py", tmp_path / "model.pt", nproc=1)
    assert done.out == "chunks 1\n"
