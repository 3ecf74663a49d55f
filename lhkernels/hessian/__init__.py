"""The local Hessian of a block as a tool: operator, spectra, back-matching.

=================== =======================================================================
snapshot            a block and its recorded input, frozen
operator            :class:`.LocalHessian`: a symmetric linear operator
symmetric           :class:`.SymmetricOperator`: what traces and spectra ask of it
find_form           how its products are computed: by one of the following two
weight_form         products for the weight of linear layers and convolutions
input_form          and for their input
layer, batch_norm   these layers, and what a batch norm behind them changes
patches             the work of it in Python; csrc/hvp.cpp does the same
autograd            products for everything else
trace               trace of an operator, exact or estimated
spectrum            :func:`.spectrum`: eigenvalues, exact or by Lanczos quadrature
distribution        :class:`.Spectrum`: eigenvalues and weights, bounds, moments, density
spectrum_plot       and their picture
marchenko_pastur    :class:`.MarchenkoPastur`: the law of random weights
back_matching       :func:`.back_matching`: Procedure 1 of the paper
arguments           numbers that users pass, checked
=================== =======================================================================
"""

from lhkernels.hessian.back_matching import back_matching
from lhkernels.hessian.distribution import Spectrum
from lhkernels.hessian.marchenko_pastur import MarchenkoPastur
from lhkernels.hessian.operator import LocalHessian
from lhkernels.hessian.spectrum import spectrum
from lhkernels.hessian.symmetric import SymmetricOperator

__all__ = [
    "LocalHessian",
    "MarchenkoPastur",
    "Spectrum",
    "SymmetricOperator",
    "back_matching",
    "spectrum",
]
