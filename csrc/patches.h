// The patches under a kernel as the columns of a matrix, a chunk at a time.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <optional>
#include <vector>

namespace lhkernels {

// How a kernel moves over the input; no numbers at all for a linear layer.
struct Geometry {
  at::IntArrayRef kernel;
  at::IntArrayRef stride;
  at::IntArrayRef padding;
  at::IntArrayRef dilation;
  int64_t groups;

  int64_t patch_size(const at::Tensor& x) const;
  std::vector<int64_t> output_size(at::IntArrayRef size) const;
};

// Calls `use` with U - mean 1^T in pieces (G, d, columns), contiguous or a transposed view, of x
// (N, C, *spatial). `beside`: numbers that the caller needs for each column and group.
void for_patches(const at::Tensor& x, const Geometry& geometry,
                 const std::optional<at::Tensor>& mean, int64_t beside, int64_t memory_limit,
                 const std::function<void(const at::Tensor&)>& use);

}  // namespace lhkernels
