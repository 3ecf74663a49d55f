"""Install torch into this Python, at the pin of constraints.txt; without CUDA if there is no GPU.

    python tools/install_torch.py [pip option ...]

Whatever pip would take is asked for its requirements first (no download): if they name CUDA
packages and this machine has no NVIDIA GPU, PyTorch's own index of CPU builds is used instead.
"""

import json
import pathlib
import shutil
import subprocess
import sys

CONSTRAINTS = pathlib.Path(__file__).parent.parent / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def pip(*args: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "-c", str(CONSTRAINTS), *args]
    return subprocess.run(command, check=not capture, capture_output=capture, text=True)


def brings_cuda(options: list[str]) -> bool:
    """Whether the torch that pip would install requires CUDA packages."""
    ask = ("--dry-run", "--no-deps", "--quiet", "--report", "-")
    probe = pip(*ask, *options, "torch", capture=True)
    if probe.returncode != 0:
        sys.exit(f"pip finds no torch for the pin in {CONSTRAINTS.name}:\n{probe.stderr}")
    planned = json.loads(probe.stdout)["install"]  # empty: already installed
    needs = [need for item in planned for need in item["metadata"].get("requires_dist", [])]
    return any(need.startswith(("nvidia-", "cuda-")) for need in needs)


def main(options: list[str]) -> None:
    if shutil.which("nvidia-smi") is None and brings_cuda(options):
        options = ["--index-url", CPU_INDEX, *options]
    pip("--quiet", *options, "torch")


if __name__ == "__main__":
    main(sys.argv[1:])
