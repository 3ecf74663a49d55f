// The fused step on CPU tensors: one pass over every parameter reads W, g and buf, writes W and
// buf, and sums the squares of the new W, from which the next step's scales come. The operators'
// schemas stand at the end; lhkernels/step/cpp.py says what their arguments are.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <array>

#include "arguments.h"
#include "chunks.h"
#include "operand.h"
#include "samples.h"
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
  uint64_t stream;  // of random bits
  bool keeps_norm;
};

// What a step leaves of a chunk for the next one.
struct Trace {
  double sq_norm = 0;
  uint64_t sample = 0;

  Trace& operator+=(const Trace& other) {
    sq_norm += other.sq_norm;
    sample += other.sample;
    return *this;
  }
};

using Seed = std::optional<int64_t>;

uint64_t sample_of(const Operand& weight, const Chunk& chunk) {
  const int64_t n = chunk.end - chunk.begin;
  ChunkSample sample(n, weight.element_size);
  sample.add_chunk(weight.at(chunk.begin), n);
  return sample.hash(chunk.index);
}

// Steps the elements of a chunk.
template <typename T>
Trace step_chunk(
    const Parameter& parameter, const Rule<double>& rule_of_all, const Seed& seed, const Chunk& chunk) {
  const TileKernels<T>& kernels = tile_kernels<T>();
  const Rule<T> rule = rule_of_all.with_scale<T>(parameter.scale);
  const auto& [weight, grad, buffer] = parameter.operands;
  const bool rounded = weight.type != c10::CppTypeToScalarType<T>::value;
  const RandomStream random = random_stream(seed.value_or(0), parameter.stream, chunk.index);
  alignas(64) std::array<T, kTile> weight_scratch, grad_scratch, buffer_scratch;
  ChunkSample sample(chunk.end - chunk.begin, weight.element_size);
  double sum = 0;
  for (int64_t begin = chunk.begin; begin < chunk.end; begin += kTile) {
    const int64_t n = std::min(kTile, chunk.end - begin);
    const int64_t first = begin - chunk.begin;
    T* w = weight.tile(begin, n, weight_scratch.data());
    const T* g = grad.tile(begin, n, grad_scratch.data());
    T* buf = buffer.data == nullptr ? nullptr : buffer.tile(begin, n, buffer_scratch.data());
    double sq_norm = kernels.update(w, g, buf, n, rule);
    if (buf != nullptr) {
      buffer.put(buf, begin, n);
    }
    if (rounded) {
      if (seed.has_value()) {
        kernels.store_stochastic(
            weight.at(begin), weight.type, w, n, random, static_cast<uint32_t>(first));
      } else {
        weight.put(w, begin, n);
      }
      sq_norm = kernels.sq_norm(weight.tile(begin, n, w), n);  // of the weights as stored
    }
    sum += sq_norm;
    if (parameter.keeps_norm) {
      sample.add(weight.at(begin), first, n);
    }
  }
  return {sum, parameter.keeps_norm ? sample.hash(chunk.index) : 0};
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

std::vector<Operand> read_all(at::TensorList tensors) {
  std::vector<Operand> operands;
  operands.reserve(tensors.size());
  for (const at::Tensor& tensor : tensors) {
    operands.push_back(read_only(tensor));
  }
  return operands;
}

// Samples of the weights whose norms are kept; 0 for the others, which are not read.
std::vector<uint64_t> samples_of(at::TensorList params, const std::vector<bool>& kept) {
  const auto weights = read_all(params);
  return chunk_table(params).sum_over_chunks<uint64_t>([&](const Chunk& chunk) -> uint64_t {
    return kept[chunk.tensor] ? sample_of(weights[chunk.tensor], chunk) : 0;
  });
}

at::Tensor sq_norms(at::TensorList params) {
  check_params(params);
  const auto weights = read_all(params);
  const auto sums = chunk_table(params).sum_over_chunks<double>([&](const Chunk& chunk) {
    const Operand& weight = weights[chunk.tensor];
    return weight.type == at::kDouble ? sq_norm_of_chunk<double>(weight, chunk)
                                      : sq_norm_of_chunk<float>(weight, chunk);
  });
  at::Tensor result = at::empty({static_cast<int64_t>(sums.size())}, at::kDouble);
  std::copy(sums.begin(), sums.end(), result.mutable_data_ptr<double>());
  return result;
}

// Computes the norms anew of weights that are not as the last step left them. `unseen` gets the first
// one's position, counted from 1.
void renew_norms(
    at::TensorList params,
    const std::vector<bool>& kept,
    const at::Tensor& samples,
    const at::Tensor& norms,
    const std::optional<at::Tensor>& unseen) {
  const auto found = samples_of(params, kept);
  const int64_t* expected = samples.const_data_ptr<int64_t>();
  std::vector<size_t> written;
  for (const auto b : c10::irange(params.size())) {
    if (kept[b] && static_cast<int64_t>(found[b]) != expected[b]) {
      written.push_back(b);
    }
  }
  for (const size_t b : written) {
    norms.mutable_data_ptr<double>()[b] = sq_norms(params.slice(b, 1)).item().toDouble();
  }
  if (!written.empty() && unseen.has_value()) {
    unseen->fill_(static_cast<int64_t>(written.front()) + 1);
  }
}

// s_b of every parameter; 1 for plain SGD.
std::vector<double> read_scales(
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
  auto result = read_numbers(*coefficients, "coefficients", count);
  const double* norms = sq_norms->const_data_ptr<double>();
  for (const auto b : c10::irange(count)) {
    result[b] *= norms[b];
  }
  return result;
}

// Which norms to keep; gathering them all costs nothing.
std::vector<bool> read_kept(
    const std::optional<at::Tensor>& sq_norms, const std::optional<at::Tensor>& uses_norm, size_t count) {
  std::vector<bool> kept(count, sq_norms.has_value());
  if (sq_norms.has_value() && uses_norm.has_value()) {
    const auto flags = read_numbers(*uses_norm, "uses_norm", count);
    for (const auto b : c10::irange(count)) {
      kept[b] = flags[b] != 0;
    }
  }
  return kept;
}

// The norms and samples of the weights as they are now.
void keep(
    const std::vector<Trace>& traces,
    const std::vector<bool>& kept,
    const at::Tensor& sq_norms,
    const std::optional<at::Tensor>& samples) {
  sq_norms.unsafeGetTensorImpl()->bump_version();
  double* norms = sq_norms.mutable_data_ptr<double>();
  for (const auto b : c10::irange(traces.size())) {
    norms[b] = kept[b] ? traces[b].sq_norm : norms[b];
  }
  if (samples.has_value()) {
    samples->unsafeGetTensorImpl()->bump_version();
    int64_t* hashes = samples->mutable_data_ptr<int64_t>();
    for (const auto b : c10::irange(traces.size())) {
      hashes[b] = static_cast<int64_t>(traces[b].sample);
    }
  }
}

// As torch's own in-place operations do, so that autograd and whoever caches a norm notice. Custom
// operators have no generated kernel that would do it for them.
void bump_versions(at::TensorList tensors) {
  for (const at::Tensor& tensor : tensors) {
    tensor.unsafeGetTensorImpl()->bump_version();
  }
}

at::Tensor samples(at::TensorList params) {
  check_params(params);
  const auto found = samples_of(params, std::vector<bool>(params.size(), true));
  at::Tensor result = at::empty({static_cast<int64_t>(found.size())}, at::kLong);
  std::copy(found.begin(), found.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

void sgd_step_(
    at::TensorList params,
    at::TensorList grads,
    at::TensorList momentum_buffers,
    const std::optional<at::Tensor>& sq_norms,
    const std::optional<at::Tensor>& coefficients,
    const std::optional<at::Tensor>& uses_norm,
    const std::optional<at::Tensor>& samples,
    const std::optional<at::Tensor>& unseen,
    const std::optional<at::Tensor>& streams,
    const std::optional<at::Tensor>& scales,
    const std::optional<at::Tensor>& grad_scale,
    const std::optional<at::Tensor>& found_inf,
    Seed seed,
    double lr,
    double momentum,
    double dampening,
    double weight_decay,
    bool nesterov,
    bool maximize) {
  const size_t count = params.size();
  check_params(params);
  check_companions(params, grads, momentum_buffers, momentum);
  check_kept(sq_norms, "sq_norms", at::kDouble, count);
  check_kept(samples, "samples", at::kLong, count);
  check_kept(streams, "streams", at::kLong, count);
  TORCH_CHECK_VALUE(
      sq_norms.has_value() || !samples.has_value(),
      "lhkernels: samples without sq_norms; pass both, or neither");
  const auto kept = read_kept(sq_norms, uses_norm, count);
  const double divisor = grad_scale.has_value() ? read_number(*grad_scale, "grad_scale") : 1;
  const bool overflow = found_inf.has_value() && read_number(*found_inf, "found_inf") != 0;
  if (overflow || params.empty()) {
    return;
  }
  if (samples.has_value()) {
    renew_norms(params, kept, *samples, *sq_norms, unseen);
  }
  const auto scale = read_scales(scales, coefficients, sq_norms, count);
  const Rule<double> rule{
      (maximize ? -1 : 1) / divisor, weight_decay, 1, momentum, 1 - dampening, lr, nesterov};

  bump_versions(params);
  bump_versions(momentum_buffers);
  const int64_t* stream = streams.has_value() ? streams->const_data_ptr<int64_t>() : nullptr;
  std::vector<Parameter> parameters;
  parameters.reserve(count);
  for (const auto b : c10::irange(count)) {
    const Operand buffer = momentum_buffers.empty() ? Operand{} : writable(momentum_buffers[b]);
    parameters.push_back(
        {{writable(params[b]), read_only(grads[b]), buffer},
         scale[b],
         stream == nullptr ? b : static_cast<uint64_t>(stream[b]),
         samples.has_value() && kept[b]});
  }

  const bool in_float64 = params[0].scalar_type() == at::kDouble;
  const auto traces = chunk_table(params).sum_over_chunks<Trace>([&](const Chunk& chunk) {
    const Parameter& parameter = parameters[chunk.tensor];
    return in_float64 ? step_chunk<double>(parameter, rule, seed, chunk)
                      : step_chunk<float>(parameter, rule, seed, chunk);
  });
  if (sq_norms.has_value()) {
    keep(traces, kept, *sq_norms, samples);
  }
}

// On tensors without values, such as torch.compile's: the shapes alone.
at::Tensor meta_per_param(at::TensorList params, at::ScalarType dtype) {
  return at::empty({static_cast<int64_t>(params.size())}, at::device(at::kMeta).dtype(dtype));
}

void do_nothing(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lhkernels, m) {
  m.def(
      "sgd_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor(c!)? sq_norms, Tensor? coefficients, Tensor? uses_norm, Tensor(d!)? samples, "
      "Tensor(e!)? unseen, Tensor? streams, Tensor? scales, Tensor? grad_scale, Tensor? found_inf, "
      "int? seed, *, float lr, float momentum, float dampening, float weight_decay, bool nesterov, "
      "bool maximize) -> ()",
      {at::Tag::pt2_compliant_tag});
  m.def("sq_norms(Tensor[] params) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def("samples(Tensor[] params) -> Tensor", {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(lhkernels, CPU, m) {
  m.impl("sgd_step_", &sgd_step_);
  m.impl("sq_norms", &sq_norms);
  m.impl("samples", &samples);
}

TORCH_LIBRARY_IMPL(lhkernels, Meta, m) {
  m.impl("sgd_step_", torch::CppFunction::makeFromBoxedFunction<&do_nothing>());
  m.impl("sq_norms", [](at::TensorList params) { return meta_per_param(params, at::kDouble); });
  m.impl("samples", [](at::TensorList params) { return meta_per_param(params, at::kLong); });
}

}  // namespace lhkernels
