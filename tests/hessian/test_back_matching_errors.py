"""Procedure 1 refuses what it can't do before it changes anything."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lhkernels.hessian.back_matching import back_matching

GOOD = {"steps": 1, "lr": 0.1, "input_steps": 1, "input_lr": 1.0}


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(n, v) for n in ("steps", "input_steps") for v in (0, -1, 1.5, True, "1")],
        *[(n, v) for n in ("lr", "input_lr") for v in (0, -0.1, float("nan"), float("inf"), "1")],
    ],
)
def test_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=rf"^{name}={value!r} is not a"):
        back_matching([nn.Linear(2, 2)], torch.ones(3, 2), None, None, **{**GOOD, name: value})


@pytest.mark.parametrize(
    ("blocks", "error", "message"),
    [
        ([], ValueError, "blocks is empty"),
        (nn.Linear(3, 2), TypeError, "blocks is one Linear; pass the list"),
        ([nn.Linear(3, 2), torch.tanh], TypeError, r"blocks\[1\] is of type .*not a module"),
        ([Pair(), nn.Linear(3, 2)], TypeError, r"block 0 \(Pair\) returned a tuple"),
        ([nn.Linear(3, 2), nn.LSTM(2, 2)], TypeError, r"block 1 \(LSTM\) returned a tuple"),
    ],
)
def test_blocks_that_do_not_do(blocks, error, message):
    with pytest.raises(error, match=message):
        back_matching(blocks, torch.randn(4, 3), torch.randn(4, 2), F.mse_loss)


def test_other_bad_input():
    linear, x, y = nn.Linear(3, 2), torch.randn(4, 3), torch.randn(4, 2)
    with pytest.raises(TypeError, match="x is of type list"):
        back_matching([linear], [1.0], y, F.mse_loss)
    with pytest.raises(ValueError, match=r"shape \(4, 2\).*0-dimensional"):
        back_matching([linear], x, y, lambda z, y: (z - y).square())
    with pytest.raises(TypeError, match="loss_fn returned a float"):
        back_matching([linear], x, y, lambda z, y: 1.0)
    with pytest.raises(ValueError, match=r"block 0 \(Linear\): its output has NaN or infinity"):
        back_matching([linear], torch.full((4, 3), torch.nan), y, F.mse_loss)
    with pytest.raises(ValueError, match="its loss is inf before any step"):
        back_matching([linear], x, torch.full((4, 2), torch.inf), F.mse_loss)
    with pytest.raises(ValueError, match=r"its loss is \S+ after \d+ of steps=90 with lr=1e\+06"):
        back_matching([linear], x, y, F.mse_loss, steps=90, lr=1e6)
    integers = nn.Module()
    integers.forward = lambda z: z.long()
    with pytest.raises(ValueError, match="needs floating-point outputs"):
        back_matching([integers, linear], x, y, F.mse_loss)


def test_blocks_that_share_a_parameter():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="blocks 0 and 2 share the parameter 'weight'"):
        back_matching([first, nn.Tanh(), second], x, y, F.mse_loss)
    first.weight.requires_grad_(False)
    back_matching([first, nn.Tanh(), second], x, y, F.mse_loss)
