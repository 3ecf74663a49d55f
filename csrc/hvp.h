// Gauss-Newton products of one linear or convolutional layer with many vectors, through ATen: any
// device. The mathematics and the layouts are described in lhkernels/hessian/patches.py, which does
// the same in Python.
#pragma once

#include <ATen/ATen.h>

#include <optional>

namespace lhkernels {

at::Tensor patch_gram(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                      at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                      const std::optional<at::Tensor>& mean, int64_t memory_limit);

at::Tensor gram_hvp(const at::Tensor& gram, const at::Tensor& rows,
                    const std::optional<at::Tensor>& scale,
                    const std::optional<at::Tensor>& direction, int64_t memory_limit);

at::Tensor patch_hvp(const at::Tensor& x, at::IntArrayRef kernel, at::IntArrayRef stride,
                     at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups,
                     const std::optional<at::Tensor>& mean, const at::Tensor& rows,
                     const std::optional<at::Tensor>& scale,
                     const std::optional<at::Tensor>& direction, int64_t memory_limit);

at::Tensor input_hvp(const at::Tensor& rows, const at::Tensor& weight, at::IntArrayRef kernel,
                     at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                     int64_t groups, const std::optional<at::Tensor>& scale,
                     const std::optional<at::Tensor>& direction, int64_t memory_limit);

}  // namespace lhkernels
