"""The scale of the initial weights: SGD's result depends on it, scale-amended SGD's does not.

Every weight that batch normalisation follows is multiplied by c at the start. The network computes
the same function; what differs is how each optimizer goes on from there (docs/algorithm.md). The
learning rate is near the best of either at c = 1.

python examples/invariance.py
"""

import torch
from torch import nn

import lhkernels as lh

STEPS, BATCH = 100, 64
STUDENT = [nn.Linear(20, 64, bias=False), nn.BatchNorm1d(64, eps=1e-12), nn.Tanh()]
STUDENT += [nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64, eps=1e-12), nn.Tanh()]
STUDENT += [nn.Linear(64, 5, bias=False)]


def final_loss(make_optimizer, c):
    """Train to tell 5 random half-spaces apart; the mean loss of the last 20 steps."""
    torch.manual_seed(0)
    model = nn.Sequential(*STUDENT).double()
    for layer in model:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    with torch.no_grad():
        for layer in (model[0], model[3]):  # the weights that batch normalisation follows
            layer.weight.mul_(c)
    teacher = torch.randn(20, 5).double()
    opt = make_optimizer(model.parameters(), lr=0.03, momentum=0.9)
    losses = []
    for _ in range(STEPS):
        x = torch.randn(BATCH, 20).double()
        loss = nn.functional.cross_entropy(model(x), (x @ teacher).argmax(1))
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return sum(losses[-20:]) / 20


print("weights x       SGD   ScaleAmendedSGD   (mean loss of the last 20 of 100 steps)")
for c in (0.01, 0.1, 1.0, 10.0, 100.0):
    sgd, ours = final_loss(torch.optim.SGD, c), final_loss(lh.ScaleAmendedSGD, c)
    print(f"{c:9g}  {sgd:8.4f}   {ours:15.4f}")
