"""ScaleAmendedSGD's numbers: torch.optim.SGD's without amendment, the paper's with it."""

import pytest
import torch
from cases import DTYPES, OPTIONS, make_grads, make_params, paper_loop, run, scale_amended, use
from torch import nn

import lhkernels as lh

BACKENDS = ["reference", "foreach", "cpp", "triton"]
F64 = torch.float64
# Of the largest element after 6 steps, against float64: each step rounds a handful of times.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 6 * 4 * torch.finfo(torch.float32).eps}


# Asked to be fused, other dtypes are rounded once where torch rounds after every operation.
EXACT = [
    *[(backend, dtype) for backend in ("reference", "foreach", "default") for dtype in DTYPES],
    ("cpp", torch.float32),
    ("cpp", torch.float64),
]


@pytest.mark.parametrize(("backend", "dtype"), EXACT)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_amendment_bits_are_torchs(backend, options, dtype, monkeypatch):
    options = {"lr": 0.1, **options}
    params = make_params(dtype=dtype)
    grads = make_grads(params, steps=4)
    flags = {} if backend == "default" else use(backend, monkeypatch, dtype)
    ours, opt = run(scale_amended(amend=False, **options, **flags), params, grads)
    theirs = [nn.Parameter(p.detach().clone()) for p in params]
    # in bfloat16 torch's foreach and loop differ by an ulp; ours follow each of them
    sgd = torch.optim.SGD(theirs, foreach=backend == "foreach", **options)
    for step in grads:
        for p, g in zip(theirs, step):
            p.grad = g.clone()
        sgd.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert ("momentum_buffer" in opt.state[a]) == ("momentum_buffer" in sgd.state[b])
        if "momentum_buffer" in opt.state[a]:
            assert torch.equal(opt.state[a]["momentum_buffer"], sgd.state[b]["momentum_buffer"])


@pytest.mark.skipif(
    torch.__version__ < "2.14", reason="torch's fused step on a CPU leaves most of such elements"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_without_amendment_low_precision_bits_are_those_of_torchs_fused_step(
    options, dtype, monkeypatch
):
    options = {"lr": 0.1, **options}
    params = make_params(dtype=dtype)
    grads = make_grads(params, steps=4)
    flags = use("cpp", monkeypatch, dtype)
    ours, _ = run(scale_amended(amend=False, **options, **flags), params, grads)
    theirs, _ = run(lambda ps: torch.optim.SGD(ps, fused=True, **options), params, grads)
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_with_amendment_numbers_are_the_papers(backend, options, dtype, monkeypatch):
    options = {"lr": 0.01, **options}
    flags = use(backend, monkeypatch, dtype)
    params = make_params(dtype=dtype)
    grads = make_grads(params, steps=6)
    ours, _ = run(scale_amended(**options, **flags), params, grads)
    for p, expected in zip(ours, paper_loop(params, grads, **options), strict=True):
        assert p.dtype == dtype
        if p.numel():
            error = (p.double() - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_steps_are_rounded_once(backend, dtype, monkeypatch):
    """A step from identical low-precision state: half an ulp of the float64 result."""
    flags = use(backend, monkeypatch, dtype)
    params = [p.detach().to(dtype).requires_grad_() for p in make_params(dtype=F64)]
    grads = make_grads(params, steps=1)
    options = {"lr": 0.25, "momentum": 0.9, "weight_decay": 0.1}
    ours, opt = run(scale_amended(**options, **flags), params, grads)
    moved = 0
    for p, before, expected in zip(ours, params, paper_loop(params, grads, **options)):
        size = expected.abs().clamp_min(torch.finfo(dtype).tiny)  # below, numbers lie no closer
        half_ulp = torch.finfo(dtype).eps / 2 * size.log2().floor().exp2()
        assert ((p.double() - expected).abs() <= half_ulp * 1.01).all()
        assert opt.state[p]["momentum_buffer"].dtype == dtype
        moved += (p != before).sum().item()
    assert moved > 0.5 * sum(p.numel() for p in params)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_pairs_of_reals(backend, dtype, monkeypatch):
    flags = use(backend, monkeypatch, dtype)
    params = [
        nn.Parameter(torch.randn(4, 6, dtype=dtype)),
        nn.Parameter(torch.randn(5, dtype=dtype)),
    ]
    grads = make_grads(params, steps=5)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.05}
    ours, opt = run(scale_amended(**options, **flags), params, grads)
    # (4, 6) complex is (4, 12) real: the same rows; the vector's factor goes by its 5 elements
    w, v = (p.detach().to(torch.complex128) for p in params)
    bufs = [torch.zeros_like(w), torch.zeros_like(v)]
    for gw, gv in grads:
        s = w.abs().square().sum() / 4
        bufs[0] = 0.9 * bufs[0] + s * (gw.to(w.dtype) + 0.05 * w)
        bufs[1] = 0.9 * bufs[1] + 5 / 4 * (gv.to(v.dtype) + 0.05 * v)
        w, v = w - 0.01 * bufs[0], v - 0.01 * bufs[1]
    tolerance = 1e-12 if dtype == torch.complex128 else 1e-5
    torch.testing.assert_close(ours[0].detach().to(w.dtype), w, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(ours[1].detach().to(v.dtype), v, rtol=tolerance, atol=tolerance)
    assert opt.state[ours[0]]["momentum_buffer"].dtype == dtype


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_late_and_absent_gradients(backend, dampening, monkeypatch):
    """A parameter whose gradients start late, or pause, has its own first step and its own pace."""
    flags = use(backend, monkeypatch)
    params = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    grads = [list(g) for g in make_grads(params, steps=6)]
    for step in (0, 1, 4):
        grads[step][1] = None
    for step in range(6):
        grads[step][2] = None
    options = {"lr": 0.05, "momentum": 0.9, "dampening": dampening, "weight_decay": 0.01}
    ours, opt = run(scale_amended(**options, **flags), params, grads)
    ref, _ = run(scale_amended(**options, foreach=False), params, grads)
    alone = [[step[1]] for step in grads if step[1] is not None]
    expected = paper_loop([params[1]], alone, **options)
    torch.testing.assert_close(ours[1].double(), expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours, ref, rtol=1e-6, atol=1e-6)
    assert torch.equal(ours[2], params[2])
    assert ours[2] not in opt.state


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_and_dtypes_mix(backend, monkeypatch):
    """Groups with their own options, several dtypes in a group; each parameter as if alone."""
    flags = use(backend, monkeypatch)
    a, b, c = (nn.Parameter(torch.randn(8, 8)) for _ in range(3))
    d = nn.Parameter(torch.randn(8, 8, dtype=F64 if backend != "triton" else torch.bfloat16))
    params = [a, d, b, c]
    grads = make_grads(params, steps=4)

    def grouped(ps):
        groups = [
            {"params": [ps[0], ps[1]], "lr": 0.1},
            {"params": [ps[2]], "amend": False, "momentum": 0.0},
            {"params": [ps[3]], "weight_decay": 0.1, "maximize": True},
        ]
        return lh.ScaleAmendedSGD(groups, lr=0.01, momentum=0.9, **flags)

    ours, opt = run(grouped, params, grads)
    each = [
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.1, "momentum": 0.9},
        {"lr": 0.01, "amend": False},
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1, "maximize": True},
    ]
    for i, options in enumerate(each):
        alone, _ = run(scale_amended(**options, **flags), [params[i]], [[g[i]] for g in grads])
        assert torch.equal(ours[i], alone[0])
    assert "momentum_buffer" not in opt.state[ours[2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts(backend, monkeypatch):
    """Gradients of another layout, expanded gradients, strided slices as parameters."""
    flags = use(backend, monkeypatch)
    base = 0.2 * torch.randn(12, 10)
    storage = 0.2 * torch.randn(6 * 4 * 9 + 1)
    params = [
        nn.Parameter((0.2 * torch.randn(6, 5, 3, 3)).to(memory_format=torch.channels_last)),
        nn.Parameter(0.2 * torch.randn(6, 8)),
        nn.Parameter(0.2 * torch.randn(7, 9).t()),
        nn.Parameter(base[::2, 1:7]),
        nn.Parameter(storage[1:].view(6, 4, 3, 3)),
    ]
    steps = []
    for _ in range(4):
        steps.append(
            [
                torch.randn(6, 5, 3, 3),
                torch.randn(6, 1).expand(6, 8),
                torch.randn(9, 7),
                torch.randn(6, 6),
                torch.randn(6, 4, 3, 3).to(memory_format=torch.channels_last),
            ]
        )
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
    # not through run(): copying would lay the parameters out anew
    expected = paper_loop(params, steps, **options)
    opt = lh.ScaleAmendedSGD(params, **options, **flags)
    for step in steps:
        for p, g in zip(params, step):
            p.grad = g
        opt.step()
    for p, e in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), e, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(base[::2, 1:7].double(), expected[3], rtol=2e-6, atol=2e-6)


def test_momentum_dtype_keeps_small_gradients():
    """A float32 buffer under bfloat16 parameters adds up what bfloat16 would round away."""
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    opt = lh.ScaleAmendedSGD([p], lr=0.0, momentum=0.999, momentum_dtype=torch.float32)
    for _ in range(400):
        p.grad = torch.full_like(p, 1.0)
        opt.step()
    buffer = opt.state[p]["momentum_buffer"]
    assert buffer.dtype == torch.float32
    s = 16 / 4
    exact = s * (1 - 0.999**400) / (1 - 0.999)
    torch.testing.assert_close(buffer, torch.full((4, 4), exact), rtol=1e-4, atol=0)


@pytest.mark.parametrize("backend", ["reference", "foreach", "cpp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stochastic_rounding_is_unbiased_and_reproducible(backend, dtype, monkeypatch):
    flags = use(backend, monkeypatch, dtype)
    n = 200_000
    start = torch.full((n,), 1.0, dtype=dtype)
    ulp = torch.finfo(dtype).eps
    step = 0.3 * ulp  # upwards from 1.0: three in ten should arrive at the next number

    def once():
        p = nn.Parameter(start.clone())
        opt = lh.ScaleAmendedSGD([p], lr=1.0, amend=False, stochastic_rounding=True, **flags)
        results = []
        for _ in range(2):
            p.grad = torch.full_like(p, -step)
            opt.step()
            results.append(p.detach().clone())
        return results

    first, second = once()
    moved = (first.double() - 1).mean().item() / ulp
    assert set(first.double().unique().tolist()) == {1.0, 1.0 + ulp}
    sigma = (0.3 * 0.7 / n) ** 0.5
    grad_rounded = torch.tensor(step).to(dtype).item() / ulp
    assert abs(moved - grad_rounded) < 5 * sigma
    # the second step draws anew: were it the first's draw, the same elements would move
    again = second[first == 1.0]
    assert abs((again.double() - 1).mean().item() / ulp - grad_rounded) < 6 * sigma
    for a, b in zip((first, second), once(), strict=True):
        assert torch.equal(a, b)
