"""Small blocks of many kinds, and their Hessians the slow way: dense, by torch.func in float64."""

import copy

import torch
import torch.nn.functional as F
from torch import nn


class Residual(nn.Module):
    """x + phi(x), with an activation that works in place."""

    def __init__(self, width):
        super().__init__()
        self.phi = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )

    def forward(self, x):
        return x + self.phi(x.clone())


class Attention(nn.Module):
    """Causal self-attention with two heads."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = (y.view(n, t, 2, d // 2).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


def affine(norm):
    """A norm with random scale and shift."""
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    return norm


# name -> () -> (block, input); made in float64 by build()
BLOCKS = {
    "linear": lambda: (nn.Linear(4, 3), torch.randn(5, 4)),
    "conv": lambda: (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), torch.randn(2, 4, 5, 4)),
    "conv+bn": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), affine(nn.BatchNorm2d(3, eps=0.1))),
        torch.randn(3, 2, 4, 5),
    ),
    "eval bn": lambda: (
        nn.Sequential(nn.Linear(4, 3), affine(nn.BatchNorm1d(3)), nn.Sigmoid()).eval(),
        torch.randn(5, 4),
    ),
    "linear+tanh": lambda: (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(5, 4)),
    "residual": lambda: (Residual(3), torch.randn(2, 3, 3, 4)),
    "layer norm": lambda: (
        nn.Sequential(nn.Linear(5, 6), affine(nn.LayerNorm(6))),
        torch.randn(4, 5),
    ),
    "attention": lambda: (Attention(4), torch.randn(2, 3, 4)),
    "max pool": lambda: (
        nn.Sequential(nn.Conv2d(1, 3, 2), nn.MaxPool2d(2)),
        torch.randn(2, 1, 5, 6),
    ),
    "avg pool": lambda: (
        nn.Sequential(nn.Conv1d(2, 3, 2), nn.ELU(), nn.AvgPool1d(3, 2)),
        torch.randn(2, 2, 8),
    ),
    "gelu mlp": lambda: (
        nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
        torch.randn(3, 4),
    ),
    "dropout": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 2)),
        torch.randn(4, 4),
    ),
}


def build(name, seed=0):
    """Block and input in float64."""
    torch.manual_seed(seed)
    block, x = BLOCKS[name]()
    return block.double(), x.double()


def at_points(block, x, wrt):
    """F as a function of one flat vector, and that vector: what H is with respect to.

    Every call starts from the same random numbers, so from the same dropout mask.
    """
    state = {n: t.detach().clone() for n, t in (*block.named_parameters(), *block.named_buffers())}
    for part in block.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            part.track_running_stats = False  # nothing to write under torch.func
    names = [n for n, p in block.named_parameters() if p.ndim >= 2]
    points = [state[n] for n in names] if wrt == "weight" else [x]
    rng = torch.get_rng_state()

    def function(flat):
        parts = flat.split([p.numel() for p in points])
        parts = [part.view(p.shape) for part, p in zip(parts, points)]
        torch.set_rng_state(rng)
        if wrt == "weight":
            return torch.func.functional_call(block, {**state, **dict(zip(names, parts))}, x)
        return torch.func.functional_call(block, state, parts[0])

    return function, torch.cat([p.reshape(-1) for p in points])


def dense_gauss_newton(block, x, wrt):
    """J^T J, J by torch.func.jacrev."""
    function, point = at_points(copy.deepcopy(block), x, wrt)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        J = torch.func.jacrev(function)(point).reshape(-1, point.numel())
    return J.T @ J


def dense_full(block, x, wrt, output_grad):
    """torch.func.hessian of 1/2 ||z_target - F||^2 with z_target = F - output_grad, fixed."""
    function, point = at_points(block, x, wrt)
    target = function(point).detach() - output_grad

    def loss(flat):
        return 0.5 * (target - function(flat)).square().sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.jacrev(torch.func.jacrev(loss))(point)


def relative_error(found, expected):
    """Largest difference over the largest entry."""
    expected = expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())
