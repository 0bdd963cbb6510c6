# SPDX-License-Identifier: Apache-2.0
"""The listing of TorchOpt's slides, with the blanks filled in and the package's name changed."""

import sys

import torch

import optdist as todist


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)
        )

    def forward(self, x):
        return self.net(x).squeeze(-1)


def worker_init_fn():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(7)


@todist.auto_init_rpc(worker_init_fn)
def main():
    model = Model()
    train(model)  # execute on rank 0 only
    save_model(model)  # execute on rank 0 only


@todist.rank_zero_only
def save_model(model):
    torch.save(model.state_dict(), sys.argv[1])


@todist.rank_zero_only
def train(model):
    model_rref = todist.rpc.RRef(model)
    dataloader = [torch.randn(n, 3) for n in (5, 4, 1, 7)]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)

    for batch in dataloader:
        optimizer.zero_grad()
        with todist.autograd.context() as context_id:
            loss = compute_loss(model_rref, batch)
            todist.autograd.backward(context_id, loss)
        optimizer.step()
    print("chunks", compute_loss.last_report.chunks)


@todist.parallelize(partitioner=todist.batch_partitioner, reducer=todist.mean_reducer)
def compute_loss(model_rref, batch):
    model = model_rref.to_here()
    loss = (model(batch) - batch.sum(dim=-1)).square().mean()
    return loss


if __name__ == "__main__":
    main()
