"""What ncu and compute-sanitizer print is read rightly, refusals and nonsense too."""

import pytest

from gpu_parts import ncu, sanitizer
from gpu_parts.runner import Failed, Unavailable

HEAD = (
    '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream",'
    '"Block Size","Grid Size","Device","CC","Section Name","Metric Name","Metric Unit",'
    '"Metric Value"'
)


def row(number, kernel, metric, unit, value):
    return (
        f'"{number}","77","python","127.0.0.1","{kernel}","1","7","(128, 1, 1)","(640, 1, 1)",'
        f'"0","9.0","Command line profiler metrics","{metric}","{unit}","{value}"'
    )


def csv(*rows):
    remarks = [
        "==PROF== Connected to process 77 (/usr/bin/python3.12)",
        '==PROF== Profiling "x": 0%',
    ]
    return "\n".join([*remarks, HEAD, *rows, "==PROF== Disconnected from process 77"])


def test_bytes_of_several_kernels():
    text = csv(
        row(0, "step_kernel", ncu.READ, "byte", "12,000"),
        row(0, "step_kernel", ncu.WRITTEN, "byte", "8,000"),
        row(0, "step_kernel", ncu.DURATION, "nsecond", "2,000"),
        row(1, "flip(int *, int)", ncu.READ, "Kbyte", "0.5"),
        row(1, "flip(int *, int)", ncu.WRITTEN, "byte", "0"),
        row(1, "flip(int *, int)", ncu.DURATION, "usecond", "1"),
        row(1, "flip(int *, int)", "sm__cycles.sum", "cycle", "n/a"),
    )
    kernels = ncu.parse(text)
    assert [k["kernel"] for k in kernels] == ["step_kernel", "flip(int *, int)"]
    found = ncu.per_element(kernels, elements=500, steps=2)
    assert found["bytes_read"] == pytest.approx(12.5)
    assert found["bytes_written"] == pytest.approx(8)
    assert found["bytes"] == pytest.approx(20.5)
    assert found["kernels"] == 1
    assert found["device_ms"] == pytest.approx(1.5e-3)
    assert found["tb_per_s"] == pytest.approx(20.5 * 500 / 1.5e-6 / 1e12)


@pytest.mark.parametrize(
    ("remark", "word"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission", "SYS_ADMIN"),
        ("==ERROR== LibraryNotLoaded", "hide"),
        ("==WARNING== No kernels were profiled.", "no kernel"),
    ],
)
def test_refusals_of_ncu_are_told(remark, word):
    with pytest.raises(Unavailable, match=word):
        ncu.parse(f"==PROF== Connected to process 77\n{remark}\n")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no kernel"),
        (csv(row(0, "k", ncu.READ, "byte", "n/a")), "'n/a'"),
        (csv(row(0, "k", ncu.READ, "furlong", "1")), "furlong"),
        (csv(row(0, "k", ncu.READ, "byte", "1")), "lacks"),
    ],
)
def test_unusable_counters_are_failures(text, word):
    with pytest.raises(Failed, match=word) as caught:
        ncu.parse(text)
    assert not isinstance(caught.value, Unavailable)


def test_the_profiler_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(ncu, "FOLDERS", ("/nowhere/*",))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match="nsight is neither on PATH nor in /nowhere"):
        ncu.find("nsight")


MEMCHECK = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 16 bytes
=========     at step_kernel+0x1230 in triton_kernel.py:120
=========     by thread (0,0,0) in block (3,0,0)
=========     Address 0x7f00 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: cuLaunchKernelEx
=========
========= Invalid __global__ write of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<4, at::native::F>(int, T1)+0x80
=========     by thread (1,0,0) in block (0,0,0)
========= ERROR SUMMARY: 3 errors
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Read access at step_kernel+0x40 in k.py:7
=========     and Write access at step_kernel+0x90 in k.py:9 [12 hazards]
=========
========= Warning: Race reported between Read access at step_kernel+0x10 in k.py:3
=========     and Read access at step_kernel+0x20 in k.py:4 [2 hazards]
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


def test_findings_by_kernel():
    found = sanitizer.parse("memcheck", MEMCHECK)
    assert (found["errors"], found["in_ours"], found["unattributed"]) == (3, 1, 1)
    assert found["kinds"] == {
        "Invalid __global__ read of size 16 bytes in step_kernel": 1,
        "Invalid __global__ write of size 4 bytes in at::native::vectorized_elementwise_kernel": 1,
    }


def test_warnings_of_races_are_no_errors():
    found = sanitizer.parse("racecheck", RACECHECK)
    assert (found["errors"], found["in_ours"]) == (1, 1)
    assert sum(found["kinds"].values()) == 2


def test_nothing_found():
    clean = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
    found = sanitizer.parse("synccheck", clean)
    assert (found["errors"], found["in_ours"], found["unattributed"]) == (0, 0, 0)


def test_refusals_of_the_sanitizer_are_told():
    with pytest.raises(Unavailable, match="does not support this device"):
        sanitizer.parse("memcheck", "========= Error: Device not supported. Please refer\n")
    with pytest.raises(Failed, match="no summary"):
        sanitizer.parse("memcheck", "========= COMPUTE-SANITIZER\nKilled\n")
    with pytest.raises(ValueError, match="'spellcheck'"):
        sanitizer.command("compute-sanitizer", "spellcheck", "log", [])
