"""lhkernels: scale-amended SGD and the local Hessian of back-propagation.

:class:`ScaleAmendedSGD` is a drop-in for :class:`torch.optim.SGD`; :class:`Plan` says which
parameter is which block and what factor its gradient gets; :mod:`lhkernels.reference` is the
specification, to be read beside the paper.
"""

__version__ = "0.1.0"

from lhkernels.optim import ScaleAmendedSGD
from lhkernels.plan import Block, Plan

__all__ = ["Block", "Plan", "ScaleAmendedSGD", "__version__"]
