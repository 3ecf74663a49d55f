"""Every option of the step kernel compiles for a GPU; the interpreter is more lenient."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

SCRIPT = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lhkernels.step import triton_kernel

TYPES = {
    "pointers": "*i64", "extents": "*i64", "owners": "*i32", "partials": "*fp32", "parity": "i32",
    "chunks": "i32", "coefficients": "*fp32", "lr": "fp32", "momentum": "fp32",
    "dampening": "fp32", "weight_decay": "fp32", "unseen": "*i32",
}
OPTIONS = [
    {"found_inf": "*fp32", "grad_scale": "*fp32"},
    {"lr": "*fp32", "weight_decay": "*fp64", "momentum": "*fp32", "parity": "*i32"},
    {"scales": "*fp32", "coefficients": None},
    {"seed": "*i64", "streams": "*i64", "found_inf": "*fp32"},
    {"coefficients": None, "partials": None, "unseen": None, "momentum": None},
]
kernel = triton_kernel.step_kernel
for options in OPTIONS:
    types = {name: kind for name, kind in {**TYPES, **options}.items() if kind}
    constants = {
        "PARAM": tl.bfloat16, "GRAD": tl.bfloat16, "NESTEROV": True, "MAXIMIZE": True, "TILE": 1024,
        "BUFFER": tl.float32 if "momentum" in types else None,
    }
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in names},
        constexprs={(i,): constants.get(n) for i, n in enumerate(names) if n not in types},
    )
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    print("compiled")
"""


def test_every_option_compiles():
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("compiled") == 5, done.stderr
