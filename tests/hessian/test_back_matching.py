"""Procedure 1: Proposition 1 on several networks, several steps, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import NETWORKS, build, conv_batch_norm, mlp, residual
from torch import nn
from torch.nn import functional as F

from lhkernels.hessian.back_matching import back_matching


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_proposition_1(network, reduction):
    model, x, y = build(network)
    state = torch.get_rng_state()
    loss = F.cross_entropy(copy.deepcopy(model)(x), y, reduction=reduction)
    torch.set_rng_state(state)
    found = back_matching(
        model, x, y, lambda z, y: F.cross_entropy(z, y, reduction=reduction), lr=0.37
    )
    assert found[-1].loss == pytest.approx(loss.item(), rel=1e-12)

    torch.set_rng_state(state)
    F.cross_entropy(model(x), y, reduction=reduction).backward()
    new = found.state_dict()
    assert list(new) == [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        change, expected = new[name] - parameter.detach(), -0.37 * parameter.grad
        # The weight's rounding limits its change; below 1e-12 of the weight nothing is said.
        error = (change - expected).norm() / (expected.norm() + parameter.detach().norm() * 1e-2)
        assert error < 1e-12, (name, float(error))


def test_proposition_1_in_float32():
    """Gradients of 1e-7 at outputs of order 1 survive: targets are kept as changes."""
    model, x, y = build(mlp, torch.float32)

    def loss(z, y):
        return 1e-7 * F.cross_entropy(z, y)

    found = back_matching(model, x, y, loss, lr=1e7).state_dict()
    loss(model(x), y).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p.detach() - 1e7 * p.grad, rtol=1e-5, atol=1e-6)


def test_targets_and_losses():
    """l_b = 1/2 ||z^{k+1/2} - F_b||^2 with the target that is handed out, before and after."""
    model, x, y = build(mlp)
    found = back_matching(model, x, y, F.cross_entropy, lr=0.05, input_lr=0.7)
    z = x
    for index, (block, match) in enumerate(zip(model, found)):
        output = block(z).detach()
        replaced = torch.func.functional_call(block, match.parameters, (z,)).detach()
        if index == len(model) - 1:
            assert match.target is None

            def loss(output):
                return F.cross_entropy(output, y)
        else:
            target = match.target

            def loss(output, target=target):
                return 0.5 * (target - output).square().sum()

        assert match.loss == pytest.approx(loss(output).item(), rel=1e-9)
        assert match.loss_weight == pytest.approx(loss(replaced).item(), rel=1e-9)
        if index == 0:
            assert match.loss_input is None
        else:
            wanted = loss(block(found[index - 1].target)).item()
            assert match.loss_input == pytest.approx(wanted, rel=1e-9)
        z = output


@pytest.mark.parametrize("network", NETWORKS, ids=lambda f: f.__name__)
def test_several_steps_lower_every_loss_further(network):
    model, x, y = build(network)
    state = torch.get_rng_state()
    left, before = {}, {}
    for steps in (1, 5):
        torch.set_rng_state(state)
        # The same targets for both: only the solves for the weights differ.
        found = back_matching(model, x, y, F.cross_entropy, steps=steps, lr=1e-3)
        left[steps] = [m.loss_weight for m in found if m.loss_weight is not None]
        before[steps] = [m.loss for m in found]
    assert before[1] == before[5]
    assert all(five < one for one, five in zip(left[1], left[5], strict=True))

    for steps in (1, 5):
        torch.set_rng_state(state)
        found = back_matching(model, x, y, F.cross_entropy, input_steps=steps, input_lr=1e-3)
        left[steps] = found[-1].loss_input  # deeper blocks have other targets
    assert left[5] < left[1] < found[-1].loss


def test_many_steps_solve_the_least_squares_problem():
    """(3) of a linear block is linear least squares, and (4) has W's pseudo-inverse."""
    torch.manual_seed(3)
    blocks = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 5, bias=False)).double()
    nn.init.orthogonal_(blocks[1].weight, gain=1.3)
    x, y = torch.randn(30, 4).double(), torch.randn(30, 5).double()

    def half_square(z, y):
        return 0.5 * (y - z).square().sum()

    found = back_matching(
        blocks, x, y, half_square, steps=2000, lr=0.01, input_steps=200, input_lr=0.5
    )
    hidden = blocks[0](x).detach()
    wanted = torch.linalg.lstsq(hidden, y).solution.T
    # The hidden units span 4 of 6 dimensions; gradient descent leaves the others where they were.
    torch.testing.assert_close(
        hidden @ found[1].parameters["weight"].T, hidden @ wanted.T, rtol=1e-9, atol=1e-9
    )
    change = (y - blocks[1](hidden).detach()) @ torch.linalg.pinv(blocks[1].weight.detach()).T
    torch.testing.assert_close(found[0].target, hidden + change, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        found[0].parameters["weight"],
        torch.linalg.lstsq(x, found[0].target).solution.T,
        rtol=1e-8,
        atol=1e-9,
    )
    residual = found[0].target - x @ torch.linalg.lstsq(x, found[0].target).solution
    assert found[0].loss_weight == pytest.approx(0.5 * residual.square().sum().item(), rel=1e-9)


def test_nothing_of_the_blocks_changes_until_apply():
    model, x, y = build(conv_batch_norm)
    model.append(nn.Dropout(0.5))
    model[1].eval()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    x.requires_grad_()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    versions = [p._version for p in model.parameters()]
    state = torch.get_rng_state()
    with torch.no_grad():
        found = back_matching(model, x, y, F.cross_entropy, steps=2, lr=0.1, input_steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert [p._version for p in model.parameters()] == versions
    assert all(torch.equal(model.state_dict()[k], v) for k, v in before.items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    assert all(p.requires_grad for p in model.parameters())
    assert x.grad is None
    assert not any(t.requires_grad for t in found.state_dict().values())

    found.apply_()
    for name, p in model.named_parameters():
        assert torch.equal(p, found.state_dict()[name])
        assert not torch.equal(p, before[name])
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads))
    other = copy.deepcopy(model)
    assert not other.load_state_dict(found.state_dict(), strict=False).unexpected_keys


def test_frozen_parameters_and_blocks_without_any():
    model, x, y = build(mlp)
    model[0].weight.requires_grad_(False)
    model.insert(1, nn.Tanh())
    found = back_matching(model, x, y, F.cross_entropy, steps=3, lr=0.1)
    assert list(found[0].parameters) == ["bias"]
    assert found[1].parameters == {}
    assert found[1].loss_weight is None
    # Blocks that share a module without parameters, or a frozen one, are fine.
    act = nn.Tanh()
    back_matching([model[0], act, nn.Linear(5, 3).double(), act], x, y, F.cross_entropy)


def test_input_gradient_of_zero():
    """A block that ignores its input: its target is its output, and the losses are 0."""

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.ones(3))

        def forward(self, z):
            return self.bias.expand(len(z), 3)

    blocks = [nn.Linear(4, 2), Constant()]
    found = back_matching(blocks, torch.randn(5, 4), torch.randn(5, 3), F.mse_loss, lr=0.1)
    assert found[0].loss == found[0].loss_weight == 0
    assert torch.equal(found[0].parameters["weight"], blocks[0].weight)
    assert "0 of 0" in str(found)


def test_table():
    model, x, y = build(residual)
    text = str(back_matching(model, x, y, F.cross_entropy, lr=0.1))
    lines = text.splitlines()
    assert lines[0] == "back-matching, 3 blocks"
    assert max(map(len, lines)) <= 80
    assert [line.split()[1] for line in lines[3:]] == ["Residual", "Residual", "Sequential"]
    assert lines[3].split()[-1] == "-"
