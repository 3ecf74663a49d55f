"""What every rank of a small world does: a function a case, compared with a single process.

``run(world, folder)`` starts the ranks and returns, for every case, what went wrong on which.
"""

from __future__ import annotations

import datetime
import json
import traceback
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from networks_on_ranks import (
    OPTIONS,
    against_one_process,
    compare,
    mesh,
    network,
    parallelize,
    shard,
    train,
    whole,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.multiprocessing.spawn import spawn

import lhkernels as lh
from lhkernels.step import global_norms


def fsdp2_fused(folder):
    against_one_process(shard, fused=True)


def fsdp2_foreach(folder):
    against_one_process(shard, foreach=True)


def fsdp2_loop(folder):
    against_one_process(shard, foreach=False)


def fsdp2_initial(folder):
    """The constant is that of the whole network."""
    against_one_process(shard, scale_reference="initial")


def fsdp2_nesterov_dampening(folder):
    against_one_process(shard, nesterov=True, maximize=True, weight_decay=0.1)
    against_one_process(shard, dampening=0.3)


def fsdp2_columns(folder):
    """Cut along another dimension."""
    against_one_process(
        lambda net: fully_shard(
            net,
            mesh=mesh(dist.get_world_size()),
            shard_placement_fn=lambda p: (
                Shard(p.ndim - 1) if p.ndim == 2 and p.shape[1] == 12 else None
            ),
        )
    )


def fsdp2_float32(folder):
    """Norms are added up in another order: a few roundings of the scale."""
    against_one_process(shard, dtype=torch.float32, tolerance=2e-5)


def fsdp2_plain_sgd_bits(folder):
    """Nothing is summed, so every bit is one process's; in bfloat16 too, with float32 momentum."""
    for dtype, momentum_dtype in ((torch.float32, None), (torch.bfloat16, torch.float32)):
        params = [torch.randn(7, 5), torch.randn(3), torch.randn(1, 2)]
        grads = [torch.randn_like(p) for p in params]
        here = mesh(dist.get_world_size())
        cut = [nn.Parameter(distribute_tensor(p.to(dtype), here, [Shard(0)])) for p in params]
        alone = [nn.Parameter(p.to(dtype)) for p in params]
        for several in (cut, alone):
            for p, g in zip(several, grads):
                g = g.to(dtype)
                p.grad = distribute_tensor(g, here, [Shard(0)]) if several is cut else g
            opt = lh.ScaleAmendedSGD(
                several, **OPTIONS, amend=False, fused=True, momentum_dtype=momentum_dtype
            )
            for _ in range(3):
                opt.step()
        for p, q in zip(cut, alone):
            assert torch.equal(whole(p), q)


def hsdp(folder):
    here = mesh(2, dist.get_world_size() // 2, names=("replicate", "shard"))
    against_one_process(lambda net: fully_shard(net, mesh=here))


def hsdp_unnamed(folder):
    here = mesh(2, dist.get_world_size() // 2)
    net = network()
    parts = [distribute_tensor(p.detach(), here, [Replicate(), Shard(0)]) for p in net.parameters()]
    params = [nn.Parameter(part) for part in parts]
    alone = [nn.Parameter(p.detach().clone()) for p in net.parameters()]
    for p, q in zip(params, alone):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    for several in (params, alone):
        opt = lh.ScaleAmendedSGD(several, **OPTIONS)
        opt.step()
        opt.step()
    for p, q in zip(params, alone):
        torch.testing.assert_close(whole(p), q.detach(), rtol=1e-12, atol=1e-14)


def tensor_parallel(folder):
    """Cut and ordinary parameters in one group."""
    against_one_process(lambda net: parallelize(net, mesh(dist.get_world_size())))


def tensor_parallel_and_fsdp(folder):
    """Three ways of being cut over two dimensions, one all-reduce."""
    here = mesh(2, dist.get_world_size() // 2, names=("dp", "tp"))

    def both(net):
        parallelize(net, here["tp"])
        fully_shard(net, mesh=here["dp"])

    against_one_process(both)


def one_reduction_a_step_which_nobody_waits_for(folder):
    """It starts when a step ends; the next step finds it done, and starts no other."""
    net, opt = against_one_process(shard, fused=True)
    log: list[str] = []
    start, collect = global_norms.GlobalNorms.start, global_norms.GlobalNorms._collect

    def logged(name, method):
        return lambda *args, **kwargs: (log.append(name), method(*args, **kwargs))[1]

    global_norms.GlobalNorms.start = logged("start", start)
    global_norms.GlobalNorms._collect = logged("collect", collect)
    try:
        train(net, opt, steps=3)
        assert log == ["collect", "start"] * 3, log
        log.clear()
        with torch.no_grad():
            net[0].weight.mul_(2)  # on all ranks: what was under way is thrown away
        train(net, opt, steps=2)
        assert log == ["collect", "start", "collect", "start", "collect", "start"], log
    finally:
        global_norms.GlobalNorms.start, global_norms.GlobalNorms._collect = start, collect


def written_weights(folder):
    """In between, by an operation on the DTensor, and by one on its part."""
    net, alone = network(), network()
    shard(net)
    opts = [lh.ScaleAmendedSGD(n.named_parameters(), **OPTIONS, fused=True) for n in (net, alone)]
    for model, opt in zip((net, alone), opts):
        train(model, opt, 2)
        with torch.no_grad():
            model[0].weight.mul_(3)
        train(model, opt, 1)
        with torch.no_grad():
            weight = model[2].weight
            (weight.to_local() if isinstance(weight, DTensor) else weight).mul_(0.5)
        train(model, opt, 1)
    compare(net, opts[0], alone, opts[1])


def an_unseen_write_on_one_rank(folder):
    """Every rank hears of it, and from then on all of them compute norms anew: none hangs.

    Nor is it forgotten where the sum that tells of it is made anew, after an open write.
    """
    for openly in (False, True):
        net, opt = against_one_process(shard, fused=True)
        if dist.get_rank() == 0:
            net[0].weight._local_tensor.data.mul_(1.5)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(net, opt, 1)
            if openly:
                with torch.no_grad():
                    net[2].weight.mul_(1.01)
            train(net, opt, 2)
        assert any("has been written" in str(w.message) for w in caught)
        assert not opt._sets.carries


def a_graph_through_the_step_is_refused(folder):
    net = network()
    shard(net)
    opt = lh.ScaleAmendedSGD(net.named_parameters(), **OPTIONS, differentiable=True)
    with pytest.raises(RuntimeError, match="differentiable=True, but the group has parameters cut"):
        train(net, opt, 1)


def all_ranks_refuse_the_first_step_together(folder):
    net = network()
    shard(net)
    with torch.no_grad():
        net[2].weight.zero_()
    opt = lh.ScaleAmendedSGD(net.named_parameters(), **OPTIONS)
    before = whole(net[0].weight).clone()
    with pytest.raises(ValueError, match=r"'2.weight' has squared norm 0.0"):
        train(net, opt, 1)
    assert torch.equal(whole(net[0].weight), before)


def grad_scaler_with_an_overflow_on_one_rank(folder):
    """It is everybody's: the step is skipped everywhere, and the next ones agree again."""
    results = []
    for several in (True, False):
        net = network(torch.float32)
        if several:
            shard(net)
        opt = lh.ScaleAmendedSGD(net.named_parameters(), **OPTIONS, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        generator = torch.Generator().manual_seed(1)
        for step in range(4):
            x = torch.randn(4, 8, generator=generator)
            opt.zero_grad()
            scaler.scale(net(x).square().sum()).backward()
            if step == 1:
                grad = net[0].weight.grad
                if not several:
                    grad[0, 0] = float("inf")
                elif dist.get_rank() == 0:
                    grad._local_tensor[0, 0] = float("inf")
            scaler.step(opt)
            scaler.update()
        results.append([whole(p) for p in net.parameters()])
        assert scaler.get_scale() == 512.0
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def noise_of_stochastic_rounding(folder):
    """Another for every part, the same for replicas."""
    world = dist.get_world_size()
    here = mesh(2, world // 2, names=("replicate", "shard"))
    start = torch.full((64 * world, 4), 1.0, dtype=torch.bfloat16)
    weight = nn.Parameter(distribute_tensor(start, here, [Replicate(), Shard(0)]))
    weight.grad = torch.full_like(weight, 1.0)
    opt = lh.ScaleAmendedSGD(
        [weight], lr=1e-3, momentum=0.9, stochastic_rounding=True, amend=False, fused=True
    )
    opt.step()
    mine = weight._local_tensor.detach().float()
    everyones = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(everyones, mine)
    half = world // 2
    assert all(torch.equal(everyones[i], everyones[i + half]) for i in range(half))
    assert not torch.equal(everyones[0], everyones[1])
    assert 0 < (mine != 1).float().mean() < 1


def checkpointed(folder, load: bool) -> None:
    """Saved by 2 ranks after 3 steps; whoever loads it goes on as one process would."""
    net, alone = network(), network()
    shard(net)
    options = {**OPTIONS, "scale_reference": "initial", "momentum_dtype": torch.float64}
    opt = lh.ScaleAmendedSGD(net.named_parameters(), **options)
    opt_alone = lh.ScaleAmendedSGD(alone.named_parameters(), **options)
    train(alone, opt_alone, 3)
    if not load:
        train(net, opt, 3)
    else:
        for p in net.parameters():
            nn.init.constant_(p, 0.5)  # another start, which is gone after loading
    weights = {"model": net.state_dict()}
    for flat in (False, True):
        flags = torch.distributed.checkpoint.state_dict.StateDictOptions(
            flatten_optimizer_state_dict=flat
        )
        state = {**weights, "optimizer": get_optimizer_state_dict(net, opt, options=flags)}
        path = Path(folder) / f"flat-{flat}"
        if not load:
            dcp.save(state, checkpoint_id=path)
            continue
        dcp.load(state, checkpoint_id=path)
        net.load_state_dict(state["model"])
        set_optimizer_state_dict(net, opt, state["optimizer"], options=flags)
        assert opt.param_groups[0]["scale_constant"] == opt_alone.param_groups[0]["scale_constant"]
    train(alone, opt_alone, 2, seed=2)
    train(net, opt, 2, seed=2)
    compare(net, opt, alone, opt_alone)


def saves_a_checkpoint(folder):
    checkpointed(folder, load=False)


def loads_it(folder):
    checkpointed(folder, load=True)


EVERYWHERE = (
    fsdp2_fused, fsdp2_foreach, fsdp2_loop, fsdp2_initial, fsdp2_nesterov_dampening, fsdp2_columns,
    fsdp2_float32, fsdp2_plain_sgd_bits, written_weights, an_unseen_write_on_one_rank,
    one_reduction_a_step_which_nobody_waits_for, all_ranks_refuse_the_first_step_together,
    a_graph_through_the_step_is_refused,
    grad_scaler_with_an_overflow_on_one_rank,
)  # fmt: skip
CASES = {
    2: (*EVERYWHERE, tensor_parallel, saves_a_checkpoint),
    3: (*EVERYWHERE, tensor_parallel, loads_it),
    4: (
        fsdp2_fused, hsdp, hsdp_unnamed, tensor_parallel, tensor_parallel_and_fsdp,
        noise_of_stochastic_rounding, loads_it,
    ),
}  # fmt: skip


def run(world: int, folder: Path) -> dict[str, dict[int, str]]:
    """Case: rank: traceback, for those that failed."""
    spawn(on_a_rank, args=(world, str(folder)), nprocs=world)
    failed: dict[str, dict[int, str]] = {}
    for rank in range(world):
        for name, text in json.loads((folder / f"{world}-{rank}.json").read_text()).items():
            failed.setdefault(name, {})[rank] = text
    return failed


def on_a_rank(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world,
        timeout=datetime.timedelta(minutes=10),
    )  # fmt: skip
    failed = {}
    for case in CASES[world]:
        try:
            case(folder)
        except BaseException:  # as CheckpointException is
            failed[case.__name__] = traceback.format_exc()
            break  # the others may wait for this rank in vain: what follows would mislead
    Path(folder, f"{world}-{rank}.json").write_text(json.dumps(failed))
    dist.destroy_process_group()
