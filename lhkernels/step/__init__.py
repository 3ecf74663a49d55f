"""Backends with one signature, :class:`StepSet`, and the choice between them."""

from lhkernels.step.base import ReferenceSet, StepSet
from lhkernels.step.dispatch import choose, fused_backend
from lhkernels.step.foreach import ForeachSet
from lhkernels.step.sets import StepSets, geometric_mean, geometric_mean_of_factors

__all__ = [
    "ForeachSet",
    "ReferenceSet",
    "StepSet",
    "StepSets",
    "choose",
    "fused_backend",
    "geometric_mean",
    "geometric_mean_of_factors",
]
