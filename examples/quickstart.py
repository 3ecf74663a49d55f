"""Train a small network on scikit-learn's digits: one line differs from torch.optim.SGD.

python examples/quickstart.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import lhkernels as lh

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
labels = torch.tensor(digits.target)
train, test = slice(0, 1400), slice(1400, None)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10, bias=False),
)  # fmt: skip

epochs, batch_size = 5, 64
# opt = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
opt = lh.ScaleAmendedSGD(model.named_parameters(), lr=0.03, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, epochs)
print(opt.plan)

for epoch in range(epochs):
    model.train()
    total = 0.0
    for batch in torch.randperm(1400).split(batch_size):
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch])
        loss.backward()
        opt.step()
        total += loss.item() * len(batch)
    schedule.step()
    model.eval()
    with torch.no_grad():
        error = (model(images[test]).argmax(1) != labels[test]).float().mean()
    print(f"epoch {epoch + 1}: train loss {total / 1400:.3f}, test error {100 * error:.1f} %")

print({name: round(scale.item(), 2) for name, scale in opt.block_scales().items()})
