"""A sweep that was stopped goes on where it stopped, and ends as if it had not been."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from sweep_cases import ROOT, lines_without_seconds, tiny_config

from lhkernels.training import TrainingError, sweep
from lhkernels.training.loop import Run
from lhkernels.training.sweep import ResultFile, run_all, train_one

pytest.importorskip("sklearn")

CPU = torch.device("cpu")
CONFIGS = [tiny_config(name, seed=seed) for seed in (0, 1) for name in ("sgd", "sa-sgd")]

# Ends by kill -9: at the fourth epoch, in the second run; or as soon as a first run is saved.
KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from sweep_cases import tiny_config
from test_sweep_resume import CONFIGS, CPU
from lhkernels.training.loop import Run
from lhkernels.training.sweep import ResultFile, run_all

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    epochs, plain = [], Run._train
    def train(run, *arguments):
        epochs.append(run)
        return plain(run, *arguments) if len(epochs) < 4 else kill()
    if {jobs} == 1:
        Run._train = train
    run_all(CONFIGS, ResultFile({path!r}), CPU, jobs={jobs}, report=kill if {jobs} > 1 else print)
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The lines of all of ``CONFIGS``, trained in one go."""
    path = tmp_path_factory.mktemp("whole") / "runs.jsonl"
    assert run_all(CONFIGS, ResultFile(path), CPU) == 0
    return lines_without_seconds(path)


@pytest.fixture
def trained(monkeypatch):
    """The configurations that are trained in this process, in their order."""
    configs, plain = [], sweep.train_one
    monkeypatch.setattr(sweep, "train_one", lambda c, d: configs.append(c) or plain(c, d))
    return configs


def killed(tmp_path, jobs):
    """The file of a sweep that is killed; returns once none of its processes is left."""
    path, script = tmp_path / "runs.jsonl", tmp_path / "killed.py"
    tests = os.path.dirname(__file__)
    script.write_text(KILLED.format(tests=tests, root=str(ROOT), path=str(path), jobs=jobs))
    # Returns when no worker holds the pipes open any more.
    ended = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    return path


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
@pytest.mark.parametrize("torn", ["", '{"key": "0123", "conf'])
def test_killed_in_a_run_and_resumed(tmp_path, uninterrupted, trained, torn, killed_file):
    path = tmp_path / "runs.jsonl"
    path.write_text(killed_file + torn)
    assert len(killed_file.splitlines()) == 1
    assert run_all(CONFIGS, ResultFile(path), CPU) == 0
    assert trained == CONFIGS[1:]
    assert path.read_text().startswith(killed_file)
    assert lines_without_seconds(path) == uninterrupted


@pytest.fixture(scope="module")
def killed_file(tmp_path_factory):
    return killed(tmp_path_factory.mktemp("killed"), jobs=1).read_text()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_with_two_jobs_and_resumed(tmp_path, uninterrupted, trained):
    path = killed(tmp_path, jobs=2)
    had = len(path.read_text().splitlines())
    assert had == 1
    assert run_all(CONFIGS, ResultFile(path), CPU) == 0
    assert len(trained) == len(CONFIGS) - had

    def by_key(lines):
        return sorted(lines, key=lambda line: line["key"])

    assert by_key(lines_without_seconds(path)) == by_key(uninterrupted)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TrainingError])
def test_an_exception_in_a_run_and_resumed(tmp_path, monkeypatch, uninterrupted, error):
    path, epochs, plain = tmp_path / "runs.jsonl", [], Run._train

    def train(run, *arguments):
        epochs.append(run)
        if len(epochs) == 6:  # the second of the third run
            raise error("stop")
        return plain(run, *arguments)

    monkeypatch.setattr(Run, "_train", train)
    torch.set_num_threads(2)
    with pytest.raises(error):
        run_all(CONFIGS, ResultFile(path), CPU)
    assert torch.get_num_threads() == 2
    assert lines_without_seconds(path) == uninterrupted[:2]
    assert run_all(CONFIGS, ResultFile(path), CPU) == 0
    assert len(epochs) == 6 + 2 * 2
    assert lines_without_seconds(path) == uninterrupted


def test_no_run_starts_when_the_time_is_up(tmp_path, monkeypatch, trained):
    file = ResultFile(tmp_path / "runs.jsonl")
    monkeypatch.setattr(sweep.time, "monotonic", lambda: 60.0 * len(trained))
    assert run_all(CONFIGS, file, CPU, until=-1.0) == 4
    assert trained == []
    assert not file.path.exists()
    assert run_all(CONFIGS, file, CPU, until=90.0) == 2  # at 0 and 60 there is time left
    assert trained == CONFIGS[:2]
    assert run_all(CONFIGS, file, CPU) == 0
    assert trained == CONFIGS


def test_a_second_sweep_trains_only_what_the_first_has_not(tmp_path, trained):
    path = tmp_path / "runs.jsonl"
    run_all(CONFIGS[:3], ResultFile(path), CPU)
    run_all(CONFIGS[1:], ResultFile(path), CPU)
    run_all([*CONFIGS, *CONFIGS], ResultFile(path), CPU)
    assert trained == CONFIGS


@pytest.fixture
def forked(monkeypatch):
    """Jobs that start in no time; none of them needs CUDA."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(sweep.multiprocessing, "get_context", lambda _: fork)


def test_what_runs_beside_a_failing_job_is_kept(tmp_path, forked):
    lost = tiny_config(data="fashion-mnist", data_dir=str(tmp_path / "none"))
    file = ResultFile(tmp_path / "runs.jsonl")
    with pytest.raises(TrainingError, match="Fashion-MNIST: not found in"):
        run_all([lost, CONFIGS[0]], file, CPU, jobs=2)
    (line,) = lines_without_seconds(file.path)
    direct = train_one(CONFIGS[0], CPU)
    assert line == {name: value for name, value in direct.items() if name != "seconds"}


def die(*_):
    os._exit(9)


def test_a_job_that_is_killed_gives_an_error_with_a_remedy(tmp_path, monkeypatch, forked):
    monkeypatch.setattr(sweep, "train_one", die)
    with pytest.raises(TrainingError, match=r"a job was killed.*fewer --jobs"):
        run_all(CONFIGS, ResultFile(tmp_path / "runs.jsonl"), CPU, jobs=2)
