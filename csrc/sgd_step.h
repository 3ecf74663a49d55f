// Implementations of the operators whose schemas are in ops.cpp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace lhkernels {

at::Tensor sq_norms(at::TensorList params);

at::Tensor samples(at::TensorList params);

void sgd_step_(
    at::TensorList params,
    at::TensorList grads,
    at::TensorList momentum_buffers,
    const std::optional<at::Tensor>& sq_norms,
    const std::optional<at::Tensor>& coefficients,
    const std::optional<at::Tensor>& scales,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool nesterov,
    bool maximize,
    const std::optional<at::Tensor>& grad_scale,
    const std::optional<at::Tensor>& found_inf,
    std::optional<int64_t> seed,
    const std::optional<at::Tensor>& streams,
    const std::optional<at::Tensor>& uses_norm,
    const std::optional<at::Tensor>& samples,
    const std::optional<at::Tensor>& unseen);

}  // namespace lhkernels
