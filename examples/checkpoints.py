"""Change the optimizer in mid-training, from torch.optim.SGD and back; resume bit for bit.

python examples/checkpoints.py
"""

import copy
import io

import torch
from torch import nn

import lhkernels as lh


def train(model, opt, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(32, 10, generator=generator)
        opt.zero_grad()
        nn.functional.mse_loss(model(x), x[:, :3]).backward()
        opt.step()


def saved(opt):
    """Through a file, as a training script would."""
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    return torch.load(file)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 3))
sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
train(model, sgd, steps=20, seed=0)

# From SGD: momentum buffers and options come along. The buffers hold plain gradients; their
# influence has faded after some tens of steps. scale_reference="initial" keeps SGD's lr sensible.
ours = lh.ScaleAmendedSGD(model.parameters(), scale_reference="initial")
ours.load_state_dict(saved(sgd))
group = ours.param_groups[0]
print(f"from SGD: lr {group['lr']}, momentum {group['momentum']}, {len(ours.state)} buffers")
train(model, ours, steps=20, seed=1)

# Resumed is as if it had not stopped, bit for bit.
twin = copy.deepcopy(model)
resumed = lh.ScaleAmendedSGD(twin.parameters())
resumed.load_state_dict(saved(ours))
train(model, ours, steps=20, seed=2)
train(twin, resumed, steps=20, seed=2)
same = all(map(torch.equal, model.parameters(), twin.parameters()))
print(f"resumed: {'the same bits' if same else 'DIFFERENT'}")

# Back to SGD: it ignores the options that it does not have.
sgd = torch.optim.SGD(model.parameters())
sgd.load_state_dict(saved(ours))
train(model, sgd, steps=1, seed=3)
print(f"back to SGD: lr {sgd.param_groups[0]['lr']}, {len(sgd.state)} buffers")
