// A tensor as the kernels see it: memory in its own order, and the element type.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "tile.h"

namespace lhkernels {

struct Operand {
  char* data = nullptr;
  at::ScalarType type = at::ScalarType::Undefined;
  int64_t element_size = 0;

  char* at(int64_t element) const {
    return data + element * element_size;
  }

  // Elements [begin, begin + n): in place where they have the arithmetic type, otherwise converted.
  template <typename T>
  T* tile(int64_t begin, int64_t n, T* scratch) const {
    if (type == c10::CppTypeToScalarType<T>::value) {
      return reinterpret_cast<T*>(at(begin));
    }
    tile_kernels<T>().load(scratch, at(begin), type, n);
    return scratch;
  }

  // Puts back what tile() gave.
  template <typename T>
  void put(const T* tile, int64_t begin, int64_t n) const {
    if (type != c10::CppTypeToScalarType<T>::value) {
      tile_kernels<T>().store(at(begin), type, tile, n);
    }
  }
};

}  // namespace lhkernels
