"""Which initialisation passes the learning signal best? Look at the local Hessian of a block.

python examples/local_hessian.py
"""

import torch
from torch import nn

import lhkernels as lh

torch.manual_seed(0)
inputs = torch.randn(64, 128, dtype=torch.float64)


def block(init, norm):
    linear = nn.Linear(128, 256, bias=False, dtype=torch.float64)
    init(linear.weight)
    return nn.Sequential(linear, nn.BatchNorm1d(256, dtype=torch.float64)) if norm else linear


BLOCKS = {
    "Gaussian": block(nn.init.normal_, norm=False),
    "Gaussian / 10": block(lambda w: nn.init.normal_(w, std=0.1), norm=False),
    "orthonormal": block(nn.init.orthogonal_, norm=False),
    "Gaussian, batch norm": block(nn.init.normal_, norm=True),
    "Gaussian / 10, batch norm": block(lambda w: nn.init.normal_(w, std=0.1), norm=True),
}

print("with respect to the input        largest     smallest    condition")
for name, module in BLOCKS.items():
    # With batch norm the paper's approximation: terms that vanish for large batches are dropped.
    H = lh.LocalHessian(module, inputs, wrt="input", approximate=isinstance(module, nn.Sequential))
    S = lh.spectrum(H)
    values = (float(x) for x in (S.largest, S.smallest_nonzero, S.condition_number))
    print("{:28} {:12.4g} {:12.4g} {:12.4g}".format(name, *values))
