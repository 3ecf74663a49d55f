// The tensors of one call cut into chunks, and the threads' shares of them.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/irange.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace lhkernels {

// Sums are gathered per chunk and added in the chunks' order, so this number fixes the bits of
// every norm: not a tuning knob that may differ between machines.
constexpr int64_t kChunk = 65536;

struct Chunk {
  int64_t tensor;
  int64_t index;  // within its tensor
  int64_t begin;  // its elements [begin, end) within the tensor
  int64_t end;
};

class ChunkTable {
 public:
  explicit ChunkTable(std::vector<int64_t> numels) : numels_(std::move(numels)) {
    first_chunk_.reserve(numels_.size() + 1);
    for (const int64_t numel : numels_) {
      first_chunk_.push_back(n_chunks_);
      n_chunks_ += (numel + kChunk - 1) / kChunk;
      n_elements_ += numel;
    }
    first_chunk_.push_back(n_chunks_);
  }

  // Calls f(chunk) for every chunk and returns, per tensor, the sum of the R that f returned.
  template <typename R, typename F>
  std::vector<R> sum_over_chunks(const F& f) const {
    std::vector<R> partials(n_chunks_);
    parallel_over_chunks([&](const Chunk& chunk) {
      partials[first_chunk_[chunk.tensor] + chunk.index] = f(chunk);
    });
    std::vector<R> sums(numels_.size());
    for (const auto b : c10::irange(numels_.size())) {
      for (const auto i : c10::irange(first_chunk_[b], first_chunk_[b + 1])) {
        sums[b] += partials[i];
      }
    }
    return sums;
  }

 private:
  // One parallel region for all tensors. Threads take the next chunk when they get free, so one that
  // the system interrupts doesn't hold the others up; who did a chunk doesn't matter for the sums.
  template <typename F>
  void parallel_over_chunks(const F& f) const {
    const bool is_small = n_elements_ < kChunk / 2;  // waking threads would take longer
    const int64_t n_threads = is_small ? 1 : std::min<int64_t>(at::get_num_threads(), n_chunks_);
    std::atomic<int64_t> next{0};
    at::parallel_for(0, n_threads, 1, [&](int64_t, int64_t) {
      for (int64_t i = next++; i < n_chunks_; i = next++) {
        f(chunk(i));
      }
    });
  }

  Chunk chunk(int64_t i) const {
    const auto after = std::upper_bound(first_chunk_.begin(), first_chunk_.end(), i);
    const int64_t tensor = after - first_chunk_.begin() - 1;
    const int64_t index = i - first_chunk_[tensor];
    const int64_t begin = index * kChunk;
    return {tensor, index, begin, std::min(begin + kChunk, numels_[tensor])};
  }

  std::vector<int64_t> numels_;
  std::vector<int64_t> first_chunk_;
  int64_t n_chunks_ = 0;
  int64_t n_elements_ = 0;
};

}  // namespace lhkernels
