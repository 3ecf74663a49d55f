"""A small transformer cut over ranks by FSDP2: trained, saved, resumed on another number of ranks.

torchrun --standalone --nproc-per-node 2 examples/fsdp2.py --save /tmp/checkpoint
torchrun --standalone --nproc-per-node 3 examples/fsdp2.py --load /tmp/checkpoint

On GPUs: --device cuda.
"""

import argparse
import gc
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import lhkernels as lh

parser = argparse.ArgumentParser()
parser.add_argument("--save", metavar="DIR")
parser.add_argument("--load", metavar="DIR")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

for name, value in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)):
    os.environ.setdefault(name, str(value))  # started by plain python: a world of one
os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
os.environ.setdefault("MASTER_PORT", "0")
if args.device == "cuda":
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
dist.init_process_group("nccl" if args.device == "cuda" else "gloo")
rank, world = dist.get_rank(), dist.get_world_size()


class LanguageModel(nn.Module):
    """Predicts the next of 64 symbols."""

    def __init__(self, symbols: int = 64, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, symbols, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], x.device)
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=True)
        return self.head(x)


torch.manual_seed(0)
model = LanguageModel().to(args.device)
mesh = init_device_mesh(args.device, (world,))
for layer in (*model.layers, model):
    fully_shard(layer, mesh=mesh)

# Embedding rows are inputs, biases and norms no blocks: plain SGD steps those.
plain = [name for name, p in model.named_parameters() if p.ndim < 2 or name == "embed.weight"]
opt = lh.ScaleAmendedSGD(  # the same line whatever the number of ranks
    model.named_parameters(), lr=0.15, momentum=0.9, scale_reference="initial",
    plan=lh.Plan.chain(model.named_parameters(), plain=plain),
)  # fmt: skip

if args.load:
    weights, state = get_state_dict(model, opt)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=args.load)
    set_state_dict(model, opt, model_state_dict=weights, optim_state_dict=state)

generator = torch.Generator().manual_seed(1 + rank + (100 if args.load else 0))
losses = []
for _ in range(100):
    # Every sequence counts up from a random symbol by a random step: an order that can be learnt.
    start, stride = (torch.randint(1, 64, (8, 1), generator=generator) for _ in range(2))
    tokens = ((start + stride * torch.arange(17)) % 64).to(args.device)
    logits = model(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    opt.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    losses.append(mean.item() / world)

if args.save:
    weights, state = get_state_dict(model, opt)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=args.save)
if rank == 0:
    print(f"{world} rank(s): loss {losses[0]:.3f} -> {losses[-1]:.3f}")
# What holds on to the group goes first: it would destroy the group with Python's lock in its hand,
# for which the group's own thread may be waiting.
del model, opt
gc.collect()
dist.destroy_process_group()
