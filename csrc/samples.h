// A weight's sample: a hash of a few cache lines of every chunk, by which a step notices that somebody
// wrote the weight since the last one. Weights of up to kSample bytes are seen whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "rounding.h"

namespace lhkernels {

constexpr int64_t kStripes = 4;
constexpr int64_t kStripe = 1024;  // bytes; long enough for the hardware's prefetcher
constexpr int64_t kSample = kStripes * kStripe;

// Sums of 64-bit words, and sums of these sums, so that order matters. Adding one number to every
// element, as multiplying by 2 does to the exponents, can't cancel: a word holds more than one.
class WordSums {
 public:
  void add(const char* data, int64_t n_bytes) {
    int64_t i = 0;
    for (; i + kLine <= n_bytes; i += kLine) {
      add_line(data + i);
    }
    if (i < n_bytes) {
      char last[kLine] = {};
      std::memcpy(last, data + i, n_bytes - i);
      add_line(last);
    }
  }

  uint64_t hash() const {
    uint64_t h = 0;
    for (int64_t j = 0; j < kLanes; ++j) {
      h = mix(mix(h + sums_[j]) + sums_of_sums_[j]);
    }
    return h;
  }

 private:
  static constexpr int64_t kLanes = 8;
  static constexpr int64_t kLine = kLanes * sizeof(uint64_t);

  void add_line(const char* data) {
    uint64_t words[kLanes];
    std::memcpy(words, data, kLine);
    for (int64_t j = 0; j < kLanes; ++j) {
      sums_[j] += words[j];
      sums_of_sums_[j] += sums_[j];
    }
  }

  uint64_t sums_[kLanes] = {};
  uint64_t sums_of_sums_[kLanes] = {};
};

// The sample of one chunk; a tensor's is the sum over its chunks.
inline uint64_t sample_of_chunk(const char* data, int64_t n_bytes, uint64_t chunk) {
  WordSums sums;
  if (n_bytes <= kSample) {
    sums.add(data, n_bytes);
  } else {
    for (int64_t i = 0; i < kStripes; ++i) {
      sums.add(data + i * (n_bytes - kStripe) / (kStripes - 1), kStripe);
    }
  }
  return mix(sums.hash() + chunk);
}

}  // namespace lhkernels
