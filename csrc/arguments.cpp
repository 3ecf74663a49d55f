#include "arguments.h"

#include <c10/util/irange.h>

namespace lhkernels {
namespace {

bool is_known(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf;
}

bool same_strides(const at::Tensor& a, const at::Tensor& b) {
  const auto sizes = a.sizes();
  const auto strides_a = a.strides();
  const auto strides_b = b.strides();
  for (const auto i : c10::irange(sizes.size())) {
    if (sizes[i] != 1 && strides_a[i] != strides_b[i]) {
      return false;
    }
  }
  return true;
}

void check_kind(const at::Tensor& tensor, const char* name, size_t index) {
  TORCH_CHECK_VALUE(
      tensor.is_cpu() && tensor.layout() == at::kStrided,
      "lhkernels: ", name, "[", index, "] is a ", tensor.layout(), " tensor on ", tensor.device(),
      "; the C++ step takes strided tensors on the CPU: pass fused=False for its group");
  TORCH_CHECK_TYPE(
      is_known(tensor.scalar_type()),
      "lhkernels: ", name, "[", index, "] has dtype ", tensor.scalar_type(),
      "; the C++ step takes float32, float64, bfloat16 and float16: pass fused=False for its group");
}

void check_companion(
    const at::Tensor& tensor, const char* name, const at::Tensor& param, size_t index) {
  check_kind(tensor, name, index);
  TORCH_CHECK_VALUE(
      tensor.sizes() == param.sizes(),
      "lhkernels: ", name, "[", index, "] has sizes ", tensor.sizes(), ", but params[", index,
      "] has ", param.sizes(), "; they must be equal");
  TORCH_CHECK_VALUE(
      same_strides(tensor, param) || tensor.numel() == 0,
      "lhkernels: ", name, "[", index, "] has strides ", tensor.strides(), ", but params[", index,
      "] has ", param.strides(), " (sizes ", param.sizes(), "); copy it to the parameter's layout: "
      "torch.empty_like(param).copy_(", name, "[", index, "])");
}

}  // namespace

void check_params(at::TensorList params) {
  for (const auto b : c10::irange(params.size())) {
    const at::Tensor& param = params[b];
    check_kind(param, "params", b);
    TORCH_CHECK_TYPE(
        param.scalar_type() == params[0].scalar_type(),
        "lhkernels: params[", b, "] has dtype ", param.scalar_type(), ", but params[0] has ",
        params[0].scalar_type(), "; make one call for each dtype");
    TORCH_CHECK_VALUE(
        param.is_non_overlapping_and_dense() || param.numel() == 0,
        "lhkernels: params[", b, "] with sizes ", param.sizes(), " and strides ", param.strides(),
        " has gaps or overlaps; the C++ step takes dense parameters: pass fused=False for its group");
  }
}

void check_companions(
    at::TensorList params, at::TensorList grads, at::TensorList buffers, double momentum) {
  TORCH_CHECK_VALUE(
      grads.size() == params.size(),
      "lhkernels: ", grads.size(), " grads for ", params.size(), " params; pass one for each");
  TORCH_CHECK_VALUE(
      buffers.size() == (momentum == 0 ? 0 : params.size()),
      "lhkernels: ", buffers.size(), " momentum_buffers for ", params.size(), " params and momentum=",
      momentum, "; pass one for each, or none where momentum is 0");
  for (const auto b : c10::irange(params.size())) {
    check_companion(grads[b], "grads", params[b], b);
    if (!buffers.empty()) {
      check_companion(buffers[b], "momentum_buffers", params[b], b);
    }
  }
}

std::vector<double> read_numbers(const at::Tensor& tensor, const char* name, size_t count) {
  TORCH_CHECK_VALUE(
      tensor.is_cpu() && tensor.dim() == 1 && tensor.numel() == static_cast<int64_t>(count),
      "lhkernels: ", name, " has shape ", tensor.sizes(), " on ", tensor.device(),
      "; it must have a number per parameter, shape [", count, "] on the CPU");
  const at::Tensor values = tensor.to(at::kDouble).contiguous();
  const double* data = values.const_data_ptr<double>();
  return {data, data + count};
}

double read_number(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(
      tensor.is_cpu() && tensor.numel() == 1,
      "lhkernels: ", name, " has shape ", tensor.sizes(), " on ", tensor.device(),
      "; it must have 1 element, on the CPU");
  return tensor.item().toDouble();
}

void check_kept(
    const std::optional<at::Tensor>& tensor, const char* name, at::ScalarType dtype, size_t count) {
  TORCH_CHECK_VALUE(
      !tensor.has_value() ||
          (tensor->is_cpu() && tensor->scalar_type() == dtype && tensor->is_contiguous() &&
           tensor->dim() == 1 && tensor->numel() == static_cast<int64_t>(count)),
      "lhkernels: ", name, " has shape ", tensor->sizes(), " and dtype ", tensor->scalar_type(),
      " on ", tensor->device(), "; it must be contiguous ",
      dtype == at::kDouble ? "float64" : "int64", " of shape [", count,
      "] on the CPU");
}

Operand writable(const at::Tensor& tensor) {
  return {
      static_cast<char*>(tensor.mutable_data_ptr()),
      tensor.scalar_type(),
      static_cast<int64_t>(tensor.element_size())};
}

Operand read_only(const at::Tensor& tensor) {
  // An operand is written through put() alone, which nobody calls for this one.
  return {
      static_cast<char*>(const_cast<void*>(tensor.const_data_ptr())),
      tensor.scalar_type(),
      static_cast<int64_t>(tensor.element_size())};
}

}  // namespace lhkernels
