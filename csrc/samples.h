// A weight's sample: a hash of a few cache lines of every chunk, by which a step notices that somebody
// wrote the weight since the last one. Weights of up to kSmallSample bytes are seen whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "chunks.h"
#include "rounding.h"
#include "tile.h"

namespace lhkernels {

constexpr int64_t kSample = 1024;       // bytes of a full chunk: reading more of them costs more than 3 %
constexpr int64_t kSmallSample = 4096;  // of a smaller one, which is most often a whole tensor
constexpr int64_t kStripes = 4;         // in as many tiles at most
constexpr int64_t kLine = 64;

// Sums of 64-bit words, and sums of these sums, so that order matters. Adding one number to the bits of
// every element, as multiplying by 2 does, can't cancel in elements of 32 bits or less: a word holds
// more than one of them.
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
  static constexpr int64_t kLanes = kLine / sizeof(uint64_t);

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

// The sample of one chunk, put together while its tiles are walked in order; a tensor's is the sum
// over its chunks.
class ChunkSample {
 public:
  ChunkSample(int64_t n_elements, int64_t element_size) : element_size_(element_size) {
    const int64_t tiles = (n_elements + kTile - 1) / kTile;
    every_ = (tiles + kStripes - 1) / kStripes;
    n_bytes_ = (n_elements < kChunk ? kSmallSample : kSample) / ((tiles + every_ - 1) / every_);
  }

  // `first` is the tile's first element within the chunk; `n` are its elements.
  void add(const char* tile, int64_t first, int64_t n) {
    if (first % (every_ * kTile) == 0) {
      sums_.add(tile, std::min(n_bytes_, n * element_size_));
    }
  }

  // The sampled tiles alone. They are far from each other: all are under way before one is waited for.
  void add_chunk(const char* chunk, int64_t n_elements) {
#if defined(__GNUC__)
    for (int64_t first = 0; first < n_elements; first += every_ * kTile) {
      for (int64_t offset = 0; offset < n_bytes_; offset += kLine) {
        __builtin_prefetch(chunk + first * element_size_ + offset);
      }
    }
#endif
    for (int64_t first = 0; first < n_elements; first += every_ * kTile) {
      add(chunk + first * element_size_, first, std::min(kTile, n_elements - first));
    }
  }

  uint64_t hash(uint64_t chunk) const {
    return mix(sums_.hash() + chunk);
  }

 private:
  int64_t element_size_;
  int64_t every_;
  int64_t n_bytes_;
  WordSums sums_;
};

}  // namespace lhkernels
