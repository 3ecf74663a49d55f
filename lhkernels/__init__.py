"""lhkernels: scale-amended SGD and the local Hessian of back-propagation.

:class:`ScaleAmendedSGD` is a drop-in for :class:`torch.optim.SGD`; :class:`Plan` says which
parameter is which block and what factor its gradient gets; :mod:`lhkernels.reference` is the
specification, to be read beside the paper. :class:`LocalHessian` is the curvature of one block,
:func:`spectrum` its eigenvalues, :class:`MarchenkoPastur` the law to hold them against, and
:func:`back_matching` solves the blocks' problems one by one.
"""

__version__ = "0.1.0"

from lhkernels.hessian import LocalHessian, MarchenkoPastur, back_matching, spectrum
from lhkernels.optim import ScaleAmendedSGD
from lhkernels.plan import Block, Plan

__all__ = [
    "Block",
    "LocalHessian",
    "MarchenkoPastur",
    "Plan",
    "ScaleAmendedSGD",
    "__version__",
    "back_matching",
    "spectrum",
]
