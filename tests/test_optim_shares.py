"""Optimizers that have a share of the network each: one per parameter, shards of ZeRO, FSDP1."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.multiprocessing.spawn import spawn

import lhkernels as lh

OPTIONS = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def network():
    torch.manual_seed(1)
    layers = [nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)]
    return nn.Sequential(*layers)  # two layers of one size, which positions would mix up


def backward(net, step):
    generator = torch.Generator().manual_seed(step)
    net(torch.randn(5, 6, generator=generator)).square().mean().backward()


def whole(steps, **options):
    """The network after steps of one optimizer for all of it."""
    net = network()
    opt = lh.ScaleAmendedSGD(net.parameters(), **OPTIONS, **options)
    for step in range(steps):
        opt.zero_grad()
        backward(net, step)
        opt.step()
    return net


def step_in_backward(net, make):
    optimizers = {p: make(p) for p in net.parameters()}

    def hook(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in net.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return optimizers


@pytest.mark.parametrize("chain", ["named_parameters", "parameters"])
@pytest.mark.parametrize("named", [True, False])
def test_an_optimizer_per_parameter(chain, named):
    expected, net = whole(3), network()
    plan = lh.Plan.chain(getattr(net, chain)())
    names = {p: name for name, p in net.named_parameters()}
    optimizers = step_in_backward(
        net,
        lambda p: lh.ScaleAmendedSGD([(names[p], p)] if named else [p], plan=plan, **OPTIONS),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(3):
            backward(net, step)
    assert all(map(torch.equal, net.parameters(), expected.parameters()))
    if named or chain == "named_parameters":  # errors and scales have the plan's names
        assert [k for opt in optimizers.values() for k in opt.block_scales()] == [*names.values()]


def test_an_optimizer_per_parameter_without_a_plan_is_warned_of():
    net = network()
    step_in_backward(net, lambda p: lh.ScaleAmendedSGD([p], **OPTIONS))
    with pytest.warns(UserWarning, match=r"plan=Plan.chain\(model.named_parameters\(\)\)"):
        backward(net, 0)


def test_an_initial_reference_of_a_share_is_warned_of():
    net = network()
    plan = lh.Plan.chain(net.named_parameters())
    opt = lh.ScaleAmendedSGD(net[0].parameters(), plan=plan, scale_reference="initial", **OPTIONS)
    backward(net, 0)
    with pytest.warns(UserWarning, match=r"others that train, such as '2\.weight'"):
        opt.step()
    # not where all that trains is here
    net[2].requires_grad_(False)
    net[4].requires_grad_(False)
    opt = lh.ScaleAmendedSGD(net[0].parameters(), plan=plan, scale_reference="initial", **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opt.step()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_keep_their_blocks(clone):
    """A plan knows its own tensors alone; an optimizer's copy takes the blocks along."""
    net = network()
    plan = lh.Plan.chain(net.named_parameters())
    opt = lh.ScaleAmendedSGD(net[2:].parameters(), plan=plan, **OPTIONS)
    net2, opt2 = clone((net, opt))
    assert [(b.kind, b.m) for b in opt2.plan.blocks] == [(b.kind, b.m) for b in opt.plan.blocks]
    for model, optimizer in ((net, opt), (net2, opt2)):
        backward(model, 0)
        optimizer.step()
    assert all(map(torch.equal, net.parameters(), net2.parameters()))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_of_a_part_that_goes_by_other_names_keep_their_blocks(clone):
    """Of which some are another parameter's in the plan."""
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    plan = lh.Plan.chain(net.named_parameters(), plain=["0.weight", "0.bias"])
    opt = lh.ScaleAmendedSGD(net[1].named_parameters(), plan=plan, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, opt2 = clone((net, opt))
    assert opt2.plan.blocks == opt.plan.blocks
    assert [block.kind for block in opt2.plan.blocks] == ["weight", "vector"] * 2


def zero_steps_as_one_optimizer(rank):
    for chain in ("named_parameters", "parameters"):
        net = network()
        plan = lh.Plan.chain(getattr(net, chain)())
        shards = [
            ZeroRedundancyOptimizer(
                net.parameters(), optimizer_class=lh.ScaleAmendedSGD, plan=plan, **OPTIONS
            )
            for _ in range(2)
        ]
        assert 0 < len(shards[0].optim.plan.blocks) < 6  # a share
        for step in range(4):
            if step == 2:  # resumed
                shards[0].consolidate_state_dict(to=0)
                saved = [shards[0].state_dict() if rank == 0 else None]
                dist.broadcast_object_list(saved, src=0)
                shards[1].load_state_dict(saved[0])
            opt = shards[step // 2]
            opt.zero_grad()
            backward(net, step)
            opt.step()
        assert all(map(torch.equal, net.parameters(), whole(4).parameters()))


def fsdp1_is_refused():
    for use_orig_params in (False, True):
        net = FullyShardedDataParallel(
            network(), use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )
        with pytest.raises(ValueError, match="FullyShardedDataParallel's, flattened") as error:
            lh.ScaleAmendedSGD(net.named_parameters())
        assert "fully_shard (FSDP2)" in str(error.value)
        lh.ScaleAmendedSGD(net.named_parameters(), amend=False)


def on_a_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    zero_steps_as_one_optimizer(rank)
    fsdp1_is_refused()
    dist.destroy_process_group()


def test_zero_and_fsdp1_on_two_ranks(tmp_path):
    spawn(on_a_rank, args=(tmp_path,), nprocs=2)
