"""bench/gpu.py: parts end in time and don't stop each other; what the tools print is read."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))

from bench import gpu, gpu_parts  # noqa: E402

DENIED = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
NCU = """==PROF== Connected to process 77
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","step_kernel","x","dram__bytes_read.sum","byte","12,000"
"0","step_kernel","x","dram__bytes_write.sum","byte","8,000"
"0","step_kernel","x","gpu__time_duration.sum","nsecond","2,000"
"1","flip(int *, int)","x","dram__bytes_read.sum","byte","500"
"1","flip(int *, int)","x","gpu__time_duration.sum","ns","1,000"
"""
CUB = """========= Invalid __global__ read of size 4 bytes
=========     at void cub::detail::DeviceReduceKernel<cub::Policy, int>(T1, T2 *)+0x2b0 in x.cu:3
=========         Host Frame: at::native::sum [0x12] in libtorch.so
========= ERROR SUMMARY: """
OURS = """========= Error: Race reported between Read access at step_kernel+0x40 in k.py:7
=========     and Write access at step_kernel+0x90 in k.py:9 [12 hazards]
========= Warning: Race reported between Read access at step_kernel+0x10 in k.py:3
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


def run(monkeypatch, out, parts, *options, limit=1e6):
    """The script's exit status, and the status of each part; a part is a command."""

    def read(record, label, text):
        record["figures"].append([label, text.strip(), "a | b"])

    found = {part: [(part, list(map(str, words)), read)] for part, words in parts.items()}
    monkeypatch.setattr(gpu, "PARTS", {part: (limit, part) for part in parts})
    monkeypatch.setattr(gpu, "jobs", lambda part, args: found[part])
    status = gpu.main(["--dry-run", "--out", str(out), *options])
    return status, [gpu.load(out / f"{part}.json").get("status") for part in parts]


def test_parts_do_not_stop_each_other_and_what_is_ok_is_kept(tmp_path, monkeypatch):
    out, ncu, count = (tmp_path / name for name in ("out", "ncu", "count"))
    ncu.write_text(f"#!/bin/sh\necho '{DENIED}'\n")
    ncu.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(gpu, "TOOLS", ("ncu", "no-such-tool"))
    parts = {
        "bad": ("sh", "-c", "echo no good; exit 3"),
        "refused": ("ncu",),
        "missing": ("env", "A=1", "no-such-tool"),
        "good": ("sh", "-c", f"echo x >> {count}; echo done"),
    }
    ended = (1, ["failed", "unavailable", "unavailable", "ok"])
    assert run(monkeypatch, out, parts) == ended
    text = (out / "summary.md").read_text()
    assert "| bad: exit status 3, 'no good' |" in text
    assert "does not have permission |" in text
    assert "no-such-tool is not on PATH" in text
    assert "| good | good | done | a \\| b |" in text
    assert run(monkeypatch, out, parts) == ended  # without the good one
    assert run(monkeypatch, out, parts, "good") == (0, ended[1])
    assert count.read_text() == "x\nx\n"
    gpu.write(out / "good.json", (out / "good.json").read_text().replace('"stamp": [', '"s": ['))
    assert run(monkeypatch, out, parts) == ended  # with it: its code was another
    assert count.read_text() == "x\nx\nx\n"


def test_time_and_interruptions(tmp_path, monkeypatch):
    parts = {"slow": ("sleep", 1e6), "late": ("true",)}
    assert run(monkeypatch, tmp_path, parts, "slow", limit=0.1) == (1, ["out of time", None])
    assert run(monkeypatch, tmp_path, parts, "--total=1e-9") == (1, ["out of time", None])
    monkeypatch.setattr(gpu, "execute", lambda *_: gpu.signal.default_int_handler(2, None))
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, tmp_path, parts, "late")
    assert "| late | failed |" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("parent", ["sh -c '$0' & wait", "sh -c '$0' &"])
def test_children_that_ignore_an_interruption_end(tmp_path, monkeypatch, parent):
    monkeypatch.setattr(gpu, "GRACE", 0.01)
    deaf = "trap '' INT TERM; echo $$ > new; mv new pid; sleep 300; touch lived"
    command = ["sh", "-c", parent.replace("'", '"'), deaf]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "pid").exists():
        time.sleep(0.01)
    gpu.end(process)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while state.exists() and state.read_text().split()[2] != "Z":  # Z: its parent must look
        time.sleep(0.01)
    assert not (tmp_path / "lived").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--parts step,stepp", "'stepp' is unknown; choose of tests, step"),
        ("--total nan", "--total nan is not > 0"),
        ("--data-folder /no/where", "/no/where is no folder"),
        ("step", "no CUDA device"),
        ("step --dry-run --out .", "holds results of a GPU"),
    ],
)
def test_bad_options(words, complaint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("environment.json").write_text('{"dry run": false}')
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(words.split())
    assert complaint in capsys.readouterr().err


def test_the_page_lists_the_parts():
    page = (ROOT / "docs" / "gpu.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (\d+) \| (.*) \|$", page, re.M)
    assert rows == [(name, str(s), what) for name, (s, what) in gpu_parts.PARTS.items()]
    assert max(limit for limit, _ in gpu_parts.PARTS.values()) < 600


def test_bytes_of_several_kernels(monkeypatch):
    monkeypatch.setattr(gpu_parts, "elements", lambda case: 250)
    record = {"data": {}, "figures": []}
    gpu_parts.read_ncu(record, "ours, float32", NCU)
    figure = "41.00 bytes an element, 25.00 read; 0.0015 ms, 0.00683 TB/s"
    assert record["figures"] == [["ours, float32", figure, "20 bytes"]]
    for text, word in ((NCU.replace("12,000", "n/a"), "'n/a'"), (DENIED, "counted nothing")):
        with pytest.raises(gpu_parts.Failed, match=word):
            gpu_parts.read_ncu(record, "ours, float32", text)


def test_errors_in_our_kernels_and_in_none_fail():
    record = {"data": {}, "figures": []}
    gpu_parts.read_sanitizer(record, "memcheck", CUB + "1 error")
    assert record["data"]["memcheck"]["kernels"] == {"cub::detail::DeviceReduceKernel": 1}
    for text, word in (
        (CUB + "2 errors", "2 errors, by kernel: {'cub::detail::DeviceReduceKernel': 1}"),
        (OURS, "1 errors, by kernel: {'step_kernel': 1}"),
        ("========= COMPUTE-SANITIZER\nKilled", "proves nothing"),
    ):
        with pytest.raises(gpu_parts.Failed, match=re.escape(word)):
            gpu_parts.read_sanitizer(record, "memcheck", text)


def test_a_dry_run_without_packages_that_a_gpu_machine_may_lack(tmp_path):
    for package in ("rich", "matplotlib", "scipy", "sklearn"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "bench/gpu.py", "--dry-run", "--out", tmp_path, "dram", "scaling"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no figure below means anything" in (tmp_path / "summary.md").read_text()
    rows = gpu.load(tmp_path / "scaling.json")["data"]["scaling"]["results"]
    assert {"lhkernels", "torch fused"} <= {row["contender"] for row in rows}
