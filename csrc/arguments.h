// The operators' arguments: checked, with errors that name the tensor and the remedy, and read.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "operand.h"

namespace lhkernels {

// Raise where a parameter is not on the CPU, of no known type, or not dense.
void check_params(at::TensorList params);

// Raise where a gradient or buffer doesn't match its parameter in size and memory order. There must
// be no buffers where momentum is 0.
void check_companions(
    at::TensorList params, at::TensorList grads, at::TensorList buffers, double momentum);

// A number per parameter, as float64.
std::vector<double> read_numbers(const at::Tensor& tensor, const char* name, size_t count);

double read_number(const at::Tensor& tensor, const char* name);

// What the caller keeps from step to step, if anything: contiguous numbers on the CPU.
void check_kept(
    const std::optional<at::Tensor>& tensor, const char* name, at::ScalarType dtype, size_t count);

Operand writable(const at::Tensor& tensor);
Operand read_only(const at::Tensor& tensor);

}  // namespace lhkernels
