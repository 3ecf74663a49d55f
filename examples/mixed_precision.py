"""Two ways to low precision: autocast with a GradScaler, and bfloat16 parameters.

python examples/mixed_precision.py
"""

import torch
from torch import nn

import lhkernels as lh

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16 if DEVICE == "cuda" else torch.bfloat16


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(32, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8)]
    return nn.Sequential(*layers).to(DEVICE)


def batch(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 32, generator=generator)
    return x.to(DEVICE, dtype), x[:, :8].to(DEVICE)


# 1. Parameters in float32, the forward pass in half precision. The step divides by the scale and
# skips an overflow itself: no pass over the gradients, no wait for the device.
model, scaler = network(), torch.amp.GradScaler(DEVICE)
opt = lh.ScaleAmendedSGD(model.named_parameters(), lr=0.02, momentum=0.9)
for seed in range(50):
    x, y = batch(seed)
    with torch.autocast(DEVICE, dtype=HALF):
        loss = nn.functional.mse_loss(model(x).float(), y)
    opt.zero_grad()
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
print(f"autocast and GradScaler, lr 0.02, 50 steps: loss {loss.item():.3f}")

# 2. Everything in bfloat16. Small updates would be rounded away: keep the momentum in float32, and
# round the weights up or down at random, so that they move by the right amount on average.
print("\nlr 0.001, 200 steps                            loss")
CAREFUL = {"momentum_dtype": torch.float32, "stochastic_rounding": True}
for name, dtype, options in (
    ("float32", torch.float32, {}),
    ("bfloat16", torch.bfloat16, {}),
    ("bfloat16, float32 momentum, random rounding", torch.bfloat16, CAREFUL),
):
    model = network().to(dtype)
    opt = lh.ScaleAmendedSGD(model.named_parameters(), lr=0.001, momentum=0.9, **options)
    for seed in range(200):
        x, y = batch(seed, dtype)
        loss = nn.functional.mse_loss(model(x).float(), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"{name:44}  {loss.item():.3f}")
