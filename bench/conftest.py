"""pytest-benchmark's JSON: our environment in it, and nothing of this machine's name or paths."""

import torch

from lhkernels import environment

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info.clear()
    machine_info["lhkernels"] = environment.describe(DEVICE)


def pytest_benchmark_update_commit_info(config, commit_info):
    kept = {key: commit_info[key] for key in ("id", "dirty") if key in commit_info}
    commit_info.clear()
    commit_info.update(kept)


def pytest_benchmark_update_json(config, benchmarks, output_json):
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)  # hundreds of thousands of timings
        benchmark.pop("options", None)
