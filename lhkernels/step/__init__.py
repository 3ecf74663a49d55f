"""Backends with one signature, :class:`StepSet`, and the choice between them."""

from lhkernels.step.base import Modifiers, ReferenceSet, StepSet
from lhkernels.step.dispatch import choose, fused_backend
from lhkernels.step.factors import block_factors, geometric_mean_of_factors
from lhkernels.step.foreach import ForeachSet
from lhkernels.step.sets import StepSets, Work

__all__ = [
    "ForeachSet",
    "Modifiers",
    "ReferenceSet",
    "StepSet",
    "StepSets",
    "Work",
    "block_factors",
    "choose",
    "fused_backend",
    "geometric_mean_of_factors",
]
