"""The step of the parameters of one group, device and dtype, by one of several backends.

sets       from parameter groups to sets of parameters, checked; kept from step to step
dispatch   which backend a set gets
base       :class:`StepSet`, what every backend offers
torch_ops  the reference and ``torch._foreach_*``
cpp        CPU tensors, in C++ (csrc/sgd_step.cpp)
triton     CUDA tensors: triton_kernel is the kernel, triton_tables what it reads
norms      norms carried from one step to the next
scales     scales as numbers to read, and their geometric mean
layout     when tensors can be walked side by side
"""

from lhkernels.step.base import Modifiers, StepSet
from lhkernels.step.dispatch import choose, fused_backend
from lhkernels.step.scales import block_scales, geometric_mean_of_scales
from lhkernels.step.sets import StepSets, Work
from lhkernels.step.torch_ops import ForeachSet, ReferenceSet

__all__ = [
    "ForeachSet",
    "Modifiers",
    "ReferenceSet",
    "StepSet",
    "StepSets",
    "Work",
    "block_scales",
    "choose",
    "fused_backend",
    "geometric_mean_of_scales",
]
