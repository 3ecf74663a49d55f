"""The step kernel's code, cross-compiled: wide accesses, no spills, enough in flight."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from lhkernels import asm

STEPS = [variant for variant in asm.variants(asm.DTYPES) if variant.kernel == "step"]
# What a multiprocessor must have requested to cover its memory's latency: bytes per second, times
# some 0.7 us, over the multiprocessors. 2.0 TB/s on 108, 3.35 TB/s on 132, 8 TB/s on 148.
BYTES_IN_FLIGHT = {80: 13_000, 90: 18_000, 100: 38_000}


@pytest.fixture(scope="module", params=asm.ARCHS, ids=lambda arch: f"sm_{arch}")
def reports(request):
    return asm.cross_compile(asm.variants(asm.DTYPES), request.param)


def test_full_tiles_move_128_bits_at_a_time(reports):
    for report in reports:
        v, elements = report.variant, asm.TILE // report.threads
        assert report.loads == {128: v.bits_read * elements // 128}, v
        if v.kernel == "step":
            assert report.stores == {128: v.bits_written * elements // 128}, v
            assert report.sass["STG.128"] == report.stores[128], v
        assert report.sass["LDG.128"] >= report.loads[128], v


def test_nothing_is_spilled(reports):
    for report in reports:
        assert report.spill_bytes == 0
        assert not [name for name in report.sass if name.startswith(("LDL", "STL"))]


def test_enough_is_in_flight(reports):
    for report in reports:
        assert 1 <= report.requested <= report.variant.bits_read * 8 // 128 * 8
        if report.variant.kernel == "step":
            assert report.bytes_in_flight >= BYTES_IN_FLIGHT[report.arch], report.variant


def test_variants_cover_the_dtypes():
    assert {v.param for v in STEPS} == {"float32", "bfloat16", "float16"}
    assert asm.Variant("step", "bfloat16", "bfloat16", "float32") in STEPS
    assert asm.Variant("step", "bfloat16", "bfloat16", "float32", stochastic=True) in STEPS


PTX = """
	ld.global.b64 	{ %rd1 }, [ %rd2 + 0 ];
	@%p1 bra 	$L__BB0_3;
$L__BB0_1:                              // a loop under a mask
	@%p2 ld.global.b32 	{ %r1 }, [ %rd3 + 0 ];
	@%p2 st.global.b32 	[ %rd3 + 0 ], { %r1 };
	@%p3 bra 	$L__BB0_1;
$L__BB0_2:                              // a loop without one
	ld.global.v4.b32 	{ %r1, %r2, %r3, %r4 }, [ %rd4 + 0 ];
	ld.global.L1::evict_first.L2::cache_hint.v2.b32 { %r5, %r6 }, [ %rd5 + 0 ], %rd9;
	ld.global.b16 	{ %rs1 }, [ %rd6 + 0 ];
	st.global.v4.b32 	[ %rd4 + 0 ], { %r1, %r2, %r3, %r4 };
	@%p4 bra 	$L__BB0_2;
$L__BB0_3:
	@%p5 st.global.b32 	[ %rd7 + 0 ], { %r7 };
"""


def test_accesses_are_told_apart():
    assert asm.full_tile_accesses(PTX) == ({128: 1, 64: 1, 16: 1}, {128: 1})


SASS = """
        /*0000*/                   LDG.E R4, desc[UR4][R2.64] ;
        /*0010*/                   LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0020*/                   IMAD.WIDE R6, R0, 0x4, R6 ;
        /*0030*/              @!P0 LDG.E.EF.128 R12, desc[UR4][R6.64] ;
        /*0040*/                   FFMA R1, R15, R0, R1 ;
        /*0050*/                   LDG.E.128 R16, desc[UR4][R2.64] ;
"""


def test_loads_before_the_first_use_are_counted():
    assert asm.loads_before_use(SASS) == 2


def test_resident_warps():
    def report(registers, shared_bytes=0, threads=128):
        return asm.Report(
            STEPS[0], 90, threads, registers, 0, shared_bytes, {}, {}, {}, 0, ""
        ).resident_warps

    assert report(32) == report(16) == 64
    assert report(33) == 48  # registers come 8 a thread
    assert report(255) == 8
    assert report(32, shared_bytes=75 << 10) == 12


def test_a_failed_compilation_says_why():
    with pytest.raises(asm.CompileError, match="sm_90 failed: KeyError: 'float8'"):
        asm.cross_compile([asm.Variant("step", "float8", "float8", "float8")], 90)


def test_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(asm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(asm.CompileError, match="triton is not installed; `pip install triton`"):
        asm.cross_compile(STEPS, 90)
