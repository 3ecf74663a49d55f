"""The local Hessian of a block as a tool: operator, spectra, back-matching.

=================== =======================================================================
snapshot            a block and its recorded input, frozen
operator            :class:`.LocalHessian`: a symmetric linear operator
closed_forms        products for linear layers and convolutions, with or without batch norm
autograd            products for everything else
trace               trace of an operator, exact or estimated
spectrum            :func:`.spectrum`: eigenvalues, exact or by Lanczos quadrature
distribution        :class:`.Spectrum`: eigenvalues and weights, bounds, moments, density
marchenko_pastur    :class:`.MarchenkoPastur`: the law of random weights
back_matching       :func:`.back_matching`: Procedure 1 of the paper
=================== =======================================================================
"""

from lhkernels.hessian.back_matching import back_matching
from lhkernels.hessian.distribution import Spectrum
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.operator import LocalHessian
from lhkernels.hessian.spectrum import spectrum

__all__ = ["LocalHessian", "MarchenkoPastur", "Spectrum", "back_matching", "spectrum"]
