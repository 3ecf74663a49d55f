"""bench/gpu_parts: parts that run ncu, compute-sanitizer, pytest and drivers, over fake ones."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

ROOT = next(p for p in Path(__file__).parents if (p / "bench").is_dir())
sys.path.append(str(ROOT / "bench"))

from gpu_parts import ncu, predictions, registry, runner, sanitizer, study, summary  # noqa: E402
from gpu_parts.runner import Context, Failed, OutOfTime, Part, Unavailable  # noqa: E402

HEAD = '"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"'
DENIED = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU"
SUPPORT = '========= Error: Device not supported. Please refer to the "Supported Devices" section'
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors"
CLEAN_RACES = (
    "========= COMPUTE-SANITIZER\n"
    "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
)
OTHERS = """========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void cub::detail::DeviceReduceKernel<cub::Policy, int>(T1, T2 *)+0x2b0
=========     by thread (31,0,0) in block (0,0,0)
=========     Access at 0x7f51c5e00a00 is not initialised
=========     Saved host backtrace up to driver entry point at kernel launch time
=========
========= ERROR SUMMARY: 1 error"""


@pytest.fixture
def gpu_context(tmp_path):
    """As on a machine with a GPU: no dry run."""
    part = Part("trial", "a trial", 60, lambda context: None)
    return Context(part, tmp_path, deadline=time.monotonic() + 1e9)


def program(folder, name, text):
    """A Python program that stands for a tool: ``log`` is the file after --log-file."""
    path = folder / name
    lines = ["import json, sys", "args = sys.argv[1:]", "log = args[args.index('--log-file') + 1]"]
    lines += ["target = args[args.index('--json') + 1]", text]
    path.write_text("#!" + sys.executable + "\n" + "\n".join(lines) + "\n")
    path.chmod(0o755)
    return str(path)


def counts(read, written, kernel="step_kernel"):
    values = {ncu.READ: read, ncu.WRITTEN: written}
    rows = [f'"0","{kernel}","x","{k}","byte","{v:,}"' for k, v in values.items()]
    rows.append(f'"0","{kernel}","x","{ncu.DURATION}","ns","2,000"')
    return "\n".join(["==PROF== Connected to process 7", HEAD, *rows, "==PROF== Disconnected"])


RAN = "json.dump({'elements': 1000, 'steps': 1}, open(target, 'w'))\n"


def use(monkeypatch, path):
    monkeypatch.setattr(ncu, "find", lambda name="ncu": path)


def test_every_case_is_counted(gpu_context, tmp_path, monkeypatch):
    text = counts(12000, 8000)
    use(monkeypatch, program(tmp_path, "ncu", RAN + f"open(log, 'w').write({text!r})"))
    ncu.part(gpu_context)
    gpu_context.conclude()
    cases = gpu_context.data["cases"]
    assert list(cases) == list(predictions.BYTES)
    assert {case["bytes"] for case in cases.values()} == {20.0}
    table = "\n".join(summary.dram(gpu_context.data))
    assert (
        "| ours, float32 | 20.00 | 12.00 | 8.00 | 20 | as predicted | 1 | 0.002 | 0.01 |" in table
    )
    assert "| torch foreach, float32 | 20.00 | 12.00 | 8.00 | 44 | below |" in table
    assert "--clock-control none" in gpu_context.commands[0]
    assert len(gpu_context.commands) == len(cases)


@pytest.mark.parametrize("where", ["open(log, 'w').write", "print"])
def test_a_refusal_of_ncu_ends_the_part(where, gpu_context, tmp_path, monkeypatch):
    use(monkeypatch, program(tmp_path, "ncu", f"{where}({DENIED + chr(10)!r}); sys.exit(1)"))
    ncu.part(gpu_context)
    with pytest.raises(Unavailable, match="SYS_ADMIN"):
        gpu_context.conclude()
    assert len(gpu_context.commands) == 1


def test_a_driver_that_fails_under_ncu_is_a_failure(gpu_context, tmp_path, monkeypatch):
    """And not a refusal of ncu's, which then saw no kernels."""
    warning = "==ERROR== The application returned an error code (1).\n"
    warning += "==WARNING== No kernels were profiled.\n"
    text = f"open(log, 'w').write({warning!r}); print('MemoryError: 40 GB'); sys.exit(1)"
    use(monkeypatch, program(tmp_path, "ncu", text))
    ncu.part(gpu_context)
    with pytest.raises(
        Failed, match=r"float32: ncu exited with 1: .* error code \(1\)\.; MemoryError: 40 GB"
    ) as caught:
        gpu_context.conclude()
    assert not isinstance(caught.value, Unavailable)
    assert len(gpu_context.commands) == len(predictions.BYTES)


def compute_sanitizer(tmp_path, monkeypatch, reports, status=0):
    """With a report for each tool; the driver outside it is one that is right."""
    text = (
        f"tool = args[args.index('--tool') + 1]\nopen(log, 'w').write({reports!r}[tool])\n"
        f"sys.exit({status})"
    )
    use(monkeypatch, program(tmp_path, "compute-sanitizer", text))
    monkeypatch.setattr(Context, "driver", lambda self, name, found, **_: found.update(ok=True))


def test_errors_in_other_kernels_are_listed_alone(gpu_context, tmp_path, monkeypatch):
    reports = dict.fromkeys(sanitizer.TOOLS, CLEAN)
    reports |= {"racecheck": CLEAN_RACES, "initcheck": OTHERS}
    compute_sanitizer(tmp_path, monkeypatch, reports)
    sanitizer.part(gpu_context)
    gpu_context.conclude()
    found = gpu_context.data["tools"]
    assert list(found) == list(sanitizer.TOOLS)
    assert (found["initcheck"]["errors"], found["initcheck"]["in_ours"]) == (1, 0)
    table = "\n".join(summary.sanitizer(gpu_context.data))
    assert (
        "| initcheck | 1 | 0 | Uninitialized __global__ memory read of size 4 bytes in cub" in table
    )


def test_errors_in_our_kernels_fail(gpu_context, tmp_path, monkeypatch):
    ours = OTHERS.replace(
        "void cub::detail::DeviceReduceKernel<cub::Policy, int>(T1, T2 *)", "step_kernel"
    )
    reports = dict.fromkeys(sanitizer.TOOLS, CLEAN)
    compute_sanitizer(
        tmp_path, monkeypatch, {**reports, "racecheck": CLEAN_RACES, "memcheck": ours}
    )
    sanitizer.part(gpu_context)
    with pytest.raises(Failed, match=r"^memcheck: 1 errors: .*step_kernel"):
        gpu_context.conclude()
    assert len(gpu_context.data["tools"]) == 4


def test_a_refusal_of_the_sanitizer_ends_the_part(gpu_context, tmp_path, monkeypatch):
    compute_sanitizer(tmp_path, monkeypatch, dict.fromkeys(sanitizer.TOOLS, SUPPORT), status=1)
    sanitizer.part(gpu_context)
    with pytest.raises(Unavailable, match="does not support this device"):
        gpu_context.conclude()
    assert len(gpu_context.commands) == 1


def test_a_clean_report_of_a_driver_that_failed_is_no_proof(gpu_context, tmp_path, monkeypatch):
    reports = {**dict.fromkeys(sanitizer.TOOLS, CLEAN), "racecheck": CLEAN_RACES}
    compute_sanitizer(tmp_path, monkeypatch, reports, status=3)
    sanitizer.part(gpu_context)
    with pytest.raises(Failed, match="memcheck: the driver exited with 3"):
        gpu_context.conclude()


def test_attempts(gpu_context):
    for kinds, expected in (
        ([], None), ([Failed], Failed), ([Unavailable, Unavailable], Unavailable),
        ([Unavailable, Failed], Failed), ([Failed, OutOfTime], OutOfTime),
    ):  # fmt: skip
        gpu_context.problems = []
        for number, kind in enumerate(kinds):
            with gpu_context.attempt(f"case {number}"):
                raise kind("no")
        if expected is None:
            gpu_context.conclude()
            continue
        with pytest.raises(Failed) as caught:
            gpu_context.conclude()
        assert type(caught.value) is expected
        assert str(caught.value) == "; ".join(f"case {n}: no" for n in range(len(kinds)))


def test_one_model_without_memory_costs_no_other(gpu_context, monkeypatch):
    def times(self, *args, **_):
        models = args[-1].split(",")
        if "transformer-7b" in models:
            raise Failed("torch.OutOfMemoryError")
        rows = [{"model": m, "contender": "lhkernels"} for m in models]
        return {"environment": {"device": "x"}, "results": rows}

    monkeypatch.setattr(Context, "python_json", times)
    monkeypatch.setattr(Context, "driver", lambda self, name, found, **_: found.update(results=[1]))
    registry.step(gpu_context)
    with pytest.raises(Failed, match=r"^transformer-7b: torch\.OutOfMemoryError$"):
        gpu_context.conclude()
    found = gpu_context.data
    assert [r["model"] for r in found["step"]["results"]] == [
        "vgg13", "resnet50", "vit-b16", "gpt2-small", "transformer-1b",
    ]  # fmt: skip
    assert found["step"]["environment"] == {"device": "x"}
    assert found["peers"] == {"results": [1]}


def test_a_driver_that_runs_out_of_time_leaves_its_results(tmp_path, monkeypatch, time_is_up):
    """In the part's own keys, so that the summary shows them."""
    source = (
        "import json, sys, time\n"
        "rows = [{'model': 'resnet50', 'optimizer': 'lhkernels', 'tensors': 161, 'kernels': 1,"
        " 'copies': 0, 'copies_new_gradients': 1, 'device_ms': 0.2}]\n"
        "with open(sys.argv[sys.argv.index('--json') + 1], 'w') as file:\n"
        "    json.dump({'launches': rows}, file)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w')\n"
        "time.sleep(1e6)\n"
    )
    package = tmp_path / "gpu_parts" / "drivers"
    package.mkdir(parents=True)
    (package / "slow.py").write_text(source)
    monkeypatch.setattr(runner, "BENCH", tmp_path)
    part = Part("launches", "kernels", 60, registry.driver("slow"))
    out = tmp_path / "out"
    out.mkdir()
    time_is_up((tmp_path / "ready").exists)
    record = runner.run_part(part, out, limit=1.5)
    assert record["status"] == "out of time"
    text = summary.write(out).read_text()
    assert (
        "| resnet50 | lhkernels | 161 | 1 | 1 | 0 | 1 | 0.2 | 0.19 - 0.21 | as predicted |" in text
    )


def test_pytest_reports_what_it_has_run_when_time_is_up(gpu_context, tmp_path, time_is_up):
    tests = gpu_context.path("test_two.py")
    tests.write_text(
        "import time\ndef test_quick(): pass\ndef test_wrong(): assert 0\n"
        f"def test_slow(): open({str(tmp_path / 'ready')!r}, 'w'); time.sleep(1e6)\n"
    )
    time_is_up((tmp_path / "ready").exists)
    args = ["-c", os.devnull, f"--rootdir={tests.parent}", str(tests)]
    with pytest.raises(OutOfTime):
        registry.select_and_test(gpu_context, "kernel", args)
    found = gpu_context.data["kernel"]
    assert (found["passed"], found["failed"]) == (1, 1)
    assert found["failures"][0].endswith("test_wrong")


@pytest.mark.parametrize("parent_is_deaf", [False, True])
def test_children_that_ignore_an_interruption_end(
    gpu_context, time_is_up, survivor, parent_is_deaf
):
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {survivor.code!r}])"
    code = survivor.code if parent_is_deaf else f"{parent}.wait()"
    time_is_up(survivor.runs, grace=0.01)
    with pytest.raises(OutOfTime):
        gpu_context.execute([sys.executable, "-c", code], limit=1)
    assert survivor.ended()


def test_the_studys_data(gpu_context, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FASHION_MNIST", tmp_path / "nowhere")
    name, folder, note = study.data_set(gpu_context)
    assert (name, folder) == ("digits", [])
    assert "no --data-folder" in note
    monkeypatch.setitem(study.OPTIONS, "data", "cifar10")
    gpu_context.data_folder = tmp_path
    assert study.data_set(gpu_context) == ("cifar10", ["--data-folder", str(tmp_path)], "")


def test_the_study_lacks_runs(gpu_context, monkeypatch):
    monkeypatch.setattr(Context, "execute", lambda self, command, **_: 1)
    with pytest.raises(OutOfTime, match="the same command goes on"):
        study.study("width")(gpu_context)
    monkeypatch.setattr(Context, "execute", lambda self, command, **_: 2)
    with pytest.raises(Failed, match="exited with 2"):
        study.study("width")(gpu_context)


def test_a_dry_runs_folder_takes_no_gpus_results(tmp_path, capsys, monkeypatch):
    import gpu
    import torch

    (tmp_path / "asm.json").write_text(json.dumps({"part": "asm", "dry_run": True}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(SystemExit):
        gpu.main(["asm", "--out", str(tmp_path)])
    assert "holds a dry run's results (asm.json)" in capsys.readouterr().err
