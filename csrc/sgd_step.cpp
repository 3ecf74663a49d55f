// The fused step on CPU tensors: one pass over every parameter reads W, g and buf, writes W and
// buf, and sums the squares of the new W, from which the next step's factors come.
#include "sgd_step.h"

#include <ATen/ops/empty.h>

#include <array>

#include "arguments.h"
#include "chunks.h"
#include "operand.h"
#include "tile.h"

namespace lhkernels {
namespace {

struct Operands {
  Operand weight;
  Operand grad;
  Operand buffer;  // null without momentum
};

struct Parameter {
  Operands operands;
  double scale;
};

struct Options {
  double lr;
  double momentum;
  double dampening;
  double weight_decay;
  double grad_factor;
  bool nesterov;
  std::optional<int64_t> seed;
};

template <typename T>
Rule<T> rule_of(const Parameter& parameter, const Options& options) {
  return {
      static_cast<T>(options.grad_factor),
      static_cast<T>(options.weight_decay),
      static_cast<T>(parameter.scale),
      static_cast<T>(options.momentum),
      static_cast<T>(1 - options.dampening),
      static_cast<T>(options.lr),
      options.nesterov};
}

// Steps the elements of a chunk; returns the sum of the new weights' squares.
template <typename T>
double step_chunk(const Parameter& parameter, const Options& options, const Chunk& chunk) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const Rule<T> rule = rule_of<T>(parameter, options);
  const auto& [weight, grad, buffer] = parameter.operands;
  const bool rounded = weight.type != c10::CppTypeToScalarType<T>::value;
  const RandomStream random = random_stream(options.seed.value_or(0), chunk.tensor, chunk.index);
  alignas(64) std::array<T, kTile> weight_scratch, grad_scratch, buffer_scratch;
  double sum = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kTile) {
    const int64_t n = std::min(kTile, chunk.end - begin);
    T* w = weight.tile(begin, n, weight_scratch.data());
    const T* g = grad.tile(begin, n, grad_scratch.data());
    T* buf = buffer.data == nullptr ? nullptr : buffer.tile(begin, n, buffer_scratch.data());
    const double sq_norm = kernels.update(w, g, buf, n, rule);
    if (buf != nullptr) {
      buffer.put(buf, begin, n);
    }
    if (!rounded) {
      sum += sq_norm;
      continue;
    }
    if (options.seed.has_value()) {
      const auto first = static_cast<uint32_t>(begin - chunk.begin);
      kernels.store_stochastic(weight.at(begin), weight.type, w, n, random, first);
    } else {
      weight.put(w, begin, n);
    }
    sum += kernels.sq_norm(weight.tile(begin, n, w), n);  // of the weights as stored
  }
  return sum;
}

template <typename T>
double sq_norm_of_chunk(const Operand& weight, const Chunk& chunk) {
  alignas(64) std::array<T, kTile> scratch;
  double sum = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kTile) {
    const int64_t n = std::min(kTile, chunk.end - begin);
    sum += tile_kernels<T>().sq_norm(weight.tile(begin, n, scratch.data()), n);
  }
  return sum;
}

ChunkTable chunk_table(at::TensorList params) {
  std::vector<int64_t> numels;
  numels.reserve(params.size());
  for (const at::Tensor& param : params) {
    numels.push_back(param.numel());
  }
  return ChunkTable(std::move(numels));
}

// s_b of every parameter; 1 for plain SGD.
std::vector<double> read_factors(
    const std::optional<at::Tensor>& scales,
    const std::optional<at::Tensor>& coefficients,
    const std::optional<at::Tensor>& sq_norms,
    size_t count) {
  if (scales.has_value()) {
    return read_numbers(*scales, "scales", count);
  }
  if (!coefficients.has_value()) {
    return std::vector<double>(count, 1.0);
  }
  TORCH_CHECK_VALUE(
      sq_norms.has_value(), "lhkernels: coefficients without sq_norms; pass both, or scales");
  auto factors = read_numbers(*coefficients, "coefficients", count);
  const double* norms = sq_norms->const_data_ptr<double>();
  for (const auto b : c10::irange(count)) {
    factors[b] *= norms[b];
  }
  return factors;
}

// Which norms to write; gathering them all costs nothing.
std::vector<bool> read_wanted(
    const std::optional<at::Tensor>& sq_norms, const std::optional<at::Tensor>& uses_norm, size_t count) {
  std::vector<bool> wanted(count, sq_norms.has_value());
  if (sq_norms.has_value() && uses_norm.has_value()) {
    const auto flags = read_numbers(*uses_norm, "uses_norm", count);
    for (const auto b : c10::irange(count)) {
      wanted[b] = flags[b] != 0;
    }
  }
  return wanted;
}

// As torch's own in-place operations do, so that autograd and whoever caches a norm notice. Custom
// operators have no generated kernel that would do it for them.
void bump_versions(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    tensor.unsafeGetTensorImpl()->bump_version();
  }
}

}  // namespace

at::Tensor sq_norms(at::TensorList params) {
  check_params(params);
  std::vector<Operand> weights;
  weights.reserve(params.size());
  for (const at::Tensor& param : params) {
    weights.push_back(read_only(param));
  }
  const auto sums = chunk_table(params).sum_over_chunks([&](const Chunk& chunk) {
    const Operand& weight = weights[chunk.tensor];
    return weight.type == at::kDouble ? sq_norm_of_chunk<double>(weight, chunk)
                                      : sq_norm_of_chunk<float>(weight, chunk);
  });
  at::Tensor result = at::empty({static_cast<int64_t>(sums.size())}, at::kDouble);
  std::copy(sums.begin(), sums.end(), result.mutable_data_ptr<double>());
  return result;
}

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
    const std::optional<at::Tensor>& uses_norm) {
  check_params(params);
  check_companions(params, grads, momentum_buffers, momentum);
  if (sq_norms.has_value()) {
    check_norms(*sq_norms, params.size());
  }
  const auto factors = read_factors(scales, coefficients, sq_norms, params.size());
  const auto wanted = read_wanted(sq_norms, uses_norm, params.size());
  const double divisor = grad_scale.has_value() ? read_number(*grad_scale, "grad_scale") : 1;
  const bool overflow = found_inf.has_value() && read_number(*found_inf, "found_inf") != 0;
  if (overflow || params.empty()) {
    return;
  }
  const Options options{
      lr, momentum, dampening, weight_decay, (maximize ? -1 : 1) / divisor, nesterov, seed};

  bump_versions(params);
  bump_versions(momentum_buffers);
  std::vector<Parameter> parameters;
  parameters.reserve(params.size());
  for (const auto b : c10::irange(params.size())) {
    const Operand buffer = momentum_buffers.empty() ? Operand{} : writable(momentum_buffers[b]);
    parameters.push_back(
        {{writable(params[b]), read_only(grads[b]), buffer}, factors[b]});
  }

  const bool in_float64 = params[0].scalar_type() == at::kDouble;
  const auto sums = chunk_table(params).sum_over_chunks([&](const Chunk& chunk) {
    const Parameter& parameter = parameters[chunk.tensor];
    return in_float64 ? step_chunk<double>(parameter, options, chunk)
                      : step_chunk<float>(parameter, options, chunk);
  });

  if (sq_norms.has_value()) {
    sq_norms->unsafeGetTensorImpl()->bump_version();
    double* norms = sq_norms->mutable_data_ptr<double>();
    for (const auto b : c10::irange(params.size())) {
      norms[b] = wanted[b] ? sums[b] : norms[b];
    }
  }
}

}  // namespace lhkernels
