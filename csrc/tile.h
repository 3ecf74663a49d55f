// Arithmetic on tiles: a few thousand elements of each operand that stay in the level-1 cache.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "rounding.h"

namespace lhkernels {

constexpr int64_t kTile = 2048;

// One tensor's step, in the arithmetic type T:
//   d = scale * (grad_factor * g + weight_decay * W)
//   buf = momentum * buf + fresh * d        fresh = 1 - dampening
//   W = W - lr * (nesterov ? d + momentum * buf : buf)
template <typename T>
struct Rule {
  T grad_factor;  // -1 to maximize, and divided by the gradient scaler's factor
  T weight_decay;
  T scale;
  T momentum;
  T fresh;
  T lr;
  bool nesterov;

  template <typename U>
  Rule<U> with_scale(double its) const {
    return {
        static_cast<U>(grad_factor), static_cast<U>(weight_decay), static_cast<U>(its),
        static_cast<U>(momentum), static_cast<U>(fresh), static_cast<U>(lr), nesterov};
  }
};

// T is float or double. Elements in memory have any of the four types float64, float32, bfloat16
// and float16; n is at most kTile where T* are tiles.
template <typename T>
struct TileKernels {
  void (*load)(T* to, const void* from, c10::ScalarType from_type, int64_t n);
  void (*store)(void* to, c10::ScalarType to_type, const T* from, int64_t n);
  // Random bits `first`, first + 1, ... of the stream; the types of 16 bits only.
  void (*store_stochastic)(
      void* to, c10::ScalarType to_type, const T* from, int64_t n, RandomStream stream, uint32_t first);
  // Returns the new weights' sq_norm. buffer is null without momentum.
  double (*update)(T* weight, const T* grad, T* buffer, int64_t n, const Rule<T>& rule);
  // The sum of squares, the same bits as update's.
  double (*sq_norm)(const T* weight, int64_t n);
};

// The version for this machine's instruction set.
template <typename T>
const TileKernels<T>& tile_kernels();

}  // namespace lhkernels
