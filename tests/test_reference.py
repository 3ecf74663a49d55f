"""The specification against the paper's recursion, its closed form and its invariances."""

import itertools

import pytest
import torch
from torch import nn

import lhkernels as lh
from lhkernels import reference
from lhkernels.hyperparameters import Hyperparameters

F64 = torch.float64


def closed_form(weights):
    return [w.square().sum() / weights[-1].shape[0] for w in weights]


@pytest.mark.parametrize("widths", [(5, 7, 3), (16, 16, 16, 10), (3, 64, 1, 8, 2), (4, 2)])
def test_recursion_equals_closed_form_on_linear_chains(widths):
    weights = [
        torch.randn(o, i, dtype=F64) * 3**k for k, (i, o) in enumerate(itertools.pairwise(widths))
    ]
    for s, expected in zip(reference.chain_scales(weights), closed_form(weights), strict=True):
        torch.testing.assert_close(s, expected, rtol=1e-12, atol=0)


def conv_chain():
    """Convolutions with strides, padding, pooling, then linear layers; positions are measured."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, stride=2, padding=2, bias=False),
        nn.Conv2d(16, 12, 3, bias=False),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 4, 20, bias=False),
        nn.Linear(20, 10, bias=False),
    ).to(F64)
    x, weights, positions = torch.randn(2, 3, 24, 24, dtype=F64), [], []
    for layer in net:
        z = layer(x)
        if hasattr(layer, "weight"):
            weights.append(layer.weight.detach())
            positions.append((x[0, 0].numel(), z[0, 0].numel()))
        x = z
    return weights, positions


def test_recursion_equals_closed_form_on_a_conv_chain():
    weights, positions = conv_chain()
    assert [p_in for p_in, _ in positions] == [576, 144, 36, 1, 1]
    for s, expected in zip(
        reference.chain_scales(weights, positions), closed_form(weights), strict=True
    ):
        torch.testing.assert_close(s, expected, rtol=1e-12, atol=0)


def test_backward_factor_of_the_last_layer_is_the_papers():
    """'the backward factor for linear layer of CIFAR10 is around 10/512'."""
    linear, conv = torch.randn(10, 512, dtype=F64), torch.randn(512, 512, 3, 3, dtype=F64)
    s_conv, _ = reference.chain_scales([conv, linear])
    m_times_m_w = 1 / s_conv
    m_w = 1 / reference.mean_squared_row_norm(conv)
    torch.testing.assert_close(m_times_m_w / m_w, torch.tensor(10 / 512, dtype=F64))


def test_row_norms():
    w = torch.arange(24.0, dtype=F64).reshape(2, 3, 4)
    rows = [sum(x * x for x in range(12)), sum(x * x for x in range(12, 24))]
    assert reference.mean_squared_row_norm(w).item() == sum(rows) / 2
    assert reference.mean_squared_row_norm(w.transpose(0, 1)).item() == sum(rows) / 3


def test_the_optimizers_plan_is_the_recursion():
    weights, positions = conv_chain()
    opt = lh.ScaleAmendedSGD([nn.Parameter(w) for w in weights], lr=0.1)
    for s, expected in zip(opt.block_scales().values(), reference.chain_scales(weights, positions)):
        torch.testing.assert_close(s, expected, rtol=1e-12, atol=0)


class BatchNormNet(nn.Module):
    """Two BN-followed layers without biases; BN's eps is negligible. The last layer is BN-followed
    too, so that the loss does not depend on the scale of any weight."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False),
            nn.BatchNorm2d(6, eps=1e-30, affine=False),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6 * 16, 5, bias=False),
            nn.BatchNorm1d(5, eps=1e-30, affine=False),
        ).to(F64)

    def forward(self, x):
        return self.layers(x)


def trajectory(start, factors, make_optimizer, momentum):
    net = BatchNormNet()
    net.load_state_dict(start)
    weights = [p for p in net.parameters() if p.dim() >= 2]
    with torch.no_grad():
        for w, c in zip(weights, factors):
            w.mul_(c)
    optimizer = make_optimizer(weights, lr=0.02, momentum=momentum)
    generator = torch.Generator().manual_seed(1)
    path = []
    for _ in range(20):
        x = torch.randn(12, 2, 6, 6, dtype=F64, generator=generator)
        y = torch.randint(5, (12,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
        path.append([w.detach().clone() for w in weights])
    return path


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("factors", [(7.0, 7.0), (0.01, 30.0)])
def test_rescaled_weights_give_the_rescaled_trajectory(momentum, factors):
    """docs/algorithm.md: W -> cW changes nothing but the factor, step for step; SGD lacks this."""
    start = BatchNormNet().state_dict()

    def deviation(make_optimizer):
        one = trajectory(start, (1.0, 1.0), make_optimizer, momentum)
        other = trajectory(start, factors, make_optimizer, momentum)
        return max(
            ((w2 / c - w1).norm() / w1.norm()).item()
            for a, b in zip(one, other)
            for w1, w2, c in zip(a, b, factors)
        )

    assert deviation(lh.ScaleAmendedSGD) < 1e-10
    assert deviation(torch.optim.SGD) > 1e-2


def test_low_precision_is_rounded_once():
    """bfloat16 and float16: within half an ulp of the float64 result of each stored value."""
    h = Hyperparameters(lr=0.3, momentum=0.9, weight_decay=0.1, nesterov=True)
    for dtype in (torch.bfloat16, torch.float16):
        w, g, b = (torch.randn(500).to(dtype) for _ in range(3))
        wide = [x.double() for x in (w, g, b)]
        scale = torch.tensor(0.7)
        reference.step(w, g, b, scale, h)
        reference.update(*wide, scale.double(), h)
        for got, exact in ((w, wide[0]), (b, wide[2])):
            size = exact.abs().clamp_min(torch.finfo(dtype).tiny)  # below, numbers lie no closer
            half_ulp = torch.finfo(dtype).eps / 2 * size.log2().floor().exp2()
            assert ((got.double() - exact).abs() <= half_ulp * (1 + 1e-4)).all()
