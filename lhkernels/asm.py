"""What the compiler makes of the step kernel, for a GPU that need not be there.

Triton cross-compiles, and its wheel brings NVIDIA's assembler and disassembler. This happens in a
process of its own: under ``TRITON_INTERPRET=1`` this one holds interpreted functions, without code.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhkernels.step.triton_tables import TILE

ARCHS = {80: "A100", 90: "H100, H200", 100: "B200"}
"""Compute capabilities, and GPUs that have them."""
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""Names as torch and as triton spell them."""
SHARED_BYTES = {80: 164 << 10, 90: 228 << 10, 100: 228 << 10}  # of a multiprocessor
REGISTERS, MAX_WARPS, MAX_PROGRAMS = 65536, 64, 32  # of a multiprocessor, on all of them


class CompileError(RuntimeError):
    """The kernel could not be compiled here."""


@dataclass(frozen=True)
class Variant:
    """One kernel that a launch may need: with momentum, weight decay and norms."""

    kernel: str  # "step" or "refresh"
    param: str
    grad: str | None = None
    momentum: str | None = None
    stochastic: bool = False

    @property
    def bits_read(self) -> int:
        """Per element of a full tile; it writes all but the gradient."""
        return sum(int(d[-2:]) for d in (self.param, self.grad, self.momentum) if d)

    @property
    def bits_written(self) -> int:
        written = (self.param, self.momentum) if self.kernel == "step" else ()
        return sum(int(d[-2:]) for d in written if d)


@dataclass(frozen=True)
class Report:
    """What one variant became. Accesses are those of one thread in one full tile, by their width.

    ``loads`` and ``stores`` map bits to counts. Of the machine code, ``sass`` counts instructions
    for global and (spilled) local memory, and ``requested`` is how many 128-bit loads a thread has
    under way before it waits for one: the assembler does not keep the order of the PTX.
    """

    variant: Variant
    arch: int
    threads: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    loads: dict[int, int]
    stores: dict[int, int]
    sass: dict[str, int]
    requested: int
    ptx: str

    @property
    def resident_warps(self) -> int:
        """Warps that fit a multiprocessor; registers are given to a warp in units of 256."""
        warps = self.threads // 32
        by_registers = REGISTERS // (-(-self.registers * 32 // 256) * 256 * warps)
        by_shared = SHARED_BYTES[self.arch] // (self.shared_bytes + 1024)  # 1 KiB is the system's
        return warps * min(by_registers, by_shared, MAX_WARPS // warps, MAX_PROGRAMS)

    @property
    def bytes_in_flight(self) -> int:
        """What all resident threads of a multiprocessor have requested, each at a full tile."""
        return self.resident_warps * 32 * 16 * self.requested

    def to_json(self) -> dict[str, Any]:
        """Everything but the PTX."""
        fields = {k: v for k, v in asdict(self).items() if k not in ("variant", "ptx")}
        derived = {"resident_warps": self.resident_warps, "bytes_in_flight": self.bytes_in_flight}
        return {**asdict(self.variant), **fields, **derived}


def variants(dtypes: Sequence[str]) -> list[Variant]:
    """The kernels for parameters of these dtypes."""
    found = []
    for dtype in dtypes:
        found.append(Variant("step", dtype, dtype, dtype))
        if dtype != "float32":
            found.append(Variant("step", dtype, dtype, "float32"))
            found.append(Variant("step", dtype, dtype, "float32", stochastic=True))
            found.append(Variant("step", dtype, "float32", "float32"))
        found.append(Variant("refresh", dtype))
    return found


def cross_compile(wanted: Sequence[Variant], arch: int) -> list[Report]:
    """Compile in a process that triton does not interpret in.

    Raises:
        CompileError: triton, or a tool of its wheel, is missing, or the compiler failed.
    """
    if importlib.util.find_spec("triton") is None:
        raise CompileError("triton is not installed; `pip install triton` (Linux only) brings it")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([root, environment.get("PYTHONPATH", "")])
    request = json.dumps({"arch": arch, "variants": [asdict(v) for v in wanted]})
    worker = subprocess.run(
        [sys.executable, "-m", "lhkernels.asm"],
        input=request, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if worker.returncode:
        reason = worker.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise CompileError(f"compiling for sm_{arch} failed: {reason[0]}")
    compiled = json.loads(worker.stdout)
    return [_report(v, arch, **result) for v, result in zip(wanted, compiled, strict=True)]


def full_tile_accesses(ptx: str) -> tuple[dict[int, int], dict[int, int]]:
    """Global loads and stores, by their bits, in loops over full tiles.

    Those are the loops whose accesses are unpredicated: the tail's and the partial norms' are under
    a mask. Scalars and tables are read outside of loops.
    """
    loads: Counter[int] = Counter()
    stores: Counter[int] = Counter()
    pattern = re.compile(r"^\s*(ld|st)\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)\s", re.MULTILINE)
    for body in _loops(ptx):
        for kind, vector, bits in pattern.findall(body):
            (loads if kind == "ld" else stores)[int(vector or 1) * int(bits)] += 1
    return dict(loads), dict(stores)


def _loops(ptx: str) -> list[str]:
    """The text between each label and the last branch back to it."""
    labels = {m[1]: m.start() for m in re.finditer(r"^(\$\w+):", ptx, re.MULTILINE)}
    ends: dict[str, int] = {}
    for branch in re.finditer(r"\bbra(?:\.uni)?\s+(\$\w+);", ptx):
        if labels[branch[1]] < branch.start():
            ends[branch[1]] = branch.start()
    return [ptx[labels[name] : end] for name, end in ends.items()]


def loads_before_use(sass: str) -> int:
    """128-bit loads of a full tile, up to the first instruction that uses what one loads."""
    loaded: set[int] = set()
    count = 0
    for line in sass.splitlines():
        registers = [int(r) for r in re.findall(r"\bR(\d+)\b", line)]
        if loaded.intersection(registers):
            break
        if re.search(r"\bLDG\.\S*128\b", line):
            loaded.update(range(registers[0], registers[0] + 4))
            count += 1
    return count


def _report(
    variant: Variant, arch: int, ptx: str, log: str, sass: str, threads: int, shared: int
) -> Report:
    loads, stores = full_tile_accesses(ptx)
    for accesses, bits in ((loads, variant.bits_read), (stores, variant.bits_written)):
        found = sum(width * count for width, count in accesses.items()) * threads
        if found != TILE * bits:  # then the wrong loops were found, and their counts mean nothing
            raise CompileError(
                f"the full tiles' loop was not recognised in {variant}: it moves {found} bits, not "
                f"{TILE * bits}; please report this, with your version of triton"
            )
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", log)))
    registers = re.search(r"Used (\d+) registers", log)
    assert registers is not None
    names = re.findall(r"\b((?:LD|ST)[GL]\.\S+)", sass)
    return Report(
        variant, arch, threads, int(registers[1]), spills, shared, loads, stores,
        dict(sorted(Counter(map(_instruction, names)).items())), loads_before_use(sass), ptx,
    )  # fmt: skip


def _instruction(name: str) -> str:
    """``LDG.E.EF.128`` is ``LDG.128``; without a width it moves 32 bits."""
    width = re.search(r"\.(?:[US])?(8|16|64|128)\b", name)
    return f"{name[:3]}.{width[1] if width else 32}"


def _compile(variant: Variant, arch: int) -> dict[str, Any]:
    """The worker's part: PTX, the assembler's log and machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from lhkernels.step import triton_kernel

    kernel = triton_kernel.step_kernel if variant.kernel == "step" else triton_kernel.refresh_kernel
    dtype: dict[str | None, Any] = {
        None: None,
        **{name: triton.language.dtype(t) for name, t in DTYPES.items()},
    }
    constants = {
        "PARAM": dtype[variant.param], "GRAD": dtype[variant.grad],
        "BUFFER": dtype[variant.momentum], "NESTEROV": False, "MAXIMIZE": False, "TILE": TILE,
    }  # fmt: skip
    types = {
        "pointers": "*i64", "extents": "*i64", "owners": "*i32", "partials": "*fp32",
        "parity": "i32", "chunks": "i32", "unseen": "*i32", "ids": "*i32", "coefficients": "*fp32",
        "lr": "fp32", "momentum": "fp32", "dampening": "fp32", "weight_decay": "fp32",
    }  # fmt: skip
    if variant.stochastic:
        types |= {"seed": "i32", "streams": "*i64"}
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(i,): constants.get(name) for i, name in enumerate(names) if name not in types},
    )
    target = GPUTarget("cuda", arch, 32)
    options = {"num_warps": triton_kernel.NUM_WARPS}
    compiled = triton.compile(source, target=target, options=options)
    log, sass = _assemble(compiled.asm["ptx"], arch)
    return {
        "ptx": compiled.asm["ptx"],
        "log": log,
        "sass": sass,
        "threads": 32 * triton_kernel.NUM_WARPS,
        "shared": compiled.metadata.shared,
    }


def _assemble(ptx: str, arch: int) -> tuple[str, str]:
    """ptxas's log, and the disassembled code."""
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas  # its wheel has two of them

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target[1]}", str(source)]
        command += ["-o", str(binary)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [knobs.nvidia.nvdisasm.path, "-c", str(binary)]
        sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return log, sass


if __name__ == "__main__":
    job = json.load(sys.stdin)
    json.dump([_compile(Variant(**v), job["arch"]) for v in job["variants"]], sys.stdout)
