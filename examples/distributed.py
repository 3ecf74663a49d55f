"""Data-parallel training: every rank takes the same step, so the norms agree without communication.

torchrun --standalone --nproc-per-node 2 examples/distributed.py
"""

import gc
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lhkernels as lh

os.environ.setdefault("RANK", "0")  # started by plain python: a world of one
os.environ.setdefault("WORLD_SIZE", "1")
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", "0")
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 1)
)
model = DistributedDataParallel(model)
opt = lh.ScaleAmendedSGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)

generator = torch.Generator().manual_seed(rank)  # a rank's own share of the data
first = last = 0.0
for i in range(100):
    x = torch.randn(32, 20, generator=generator)
    loss = nn.functional.mse_loss(model(x), x[:, :1])
    opt.zero_grad()
    loss.backward()  # averages the gradients over the ranks
    opt.step()
    first, last = (loss.item() if i == 0 else first), loss.item()

mine = torch.cat([p.detach().flatten() for p in model.parameters()])
everyones = [torch.empty_like(mine) for _ in range(world)]
dist.all_gather(everyones, mine)
if rank == 0:
    same = all(torch.equal(mine, weights) for weights in everyones)
    print(f"loss {first:.3f} -> {last:.3f}; {world} rank(s) {'alike' if same else 'DIFFER'}")
# What holds on to the group goes first: it would destroy the group with Python's lock in its hand,
# for which the group's own thread may be waiting.
del model
gc.collect()
dist.destroy_process_group()
