// The tile kernels' versions and the choice among them. Functions carry target attributes instead
// of the whole file being compiled for one machine, so the binary runs on every x86-64.
#include "tile.h"

#include <ATen/Version.h>

#include <string>
#include <type_traits>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define LHK_MULTIVERSION 1
#else
#define LHK_MULTIVERSION 0
#endif

#if LHK_MULTIVERSION

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define LHK_VERSION avx2
#define LHK_FMA 1
#include "tile.inc"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define LHK_VERSION avx512
#define LHK_FMA 1
#include "tile.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif  // LHK_MULTIVERSION

#define LHK_VERSION portable
#if defined(__FP_FAST_FMA) && defined(__FP_FAST_FMAF)
#define LHK_FMA 1
#else
#define LHK_FMA 0
#endif
#include "tile.inc"

namespace lhkernels {
namespace {

template <typename T>
TileKernels<T> choose() {
#if LHK_MULTIVERSION
  // torch's choice, and with it the environment variable ATEN_CPU_CAPABILITY.
  const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512") {
    return avx512::kernels<T>();
  }
  if (capability == "AVX2") {
    return avx2::kernels<T>();
  }
#endif
  return portable::kernels<T>();
}

}  // namespace

template <typename T>
const TileKernels<T>& tile_kernels() {
  static const TileKernels<T> kernels = choose<T>();
  return kernels;
}

template const TileKernels<float>& tile_kernels<float>();
template const TileKernels<double>& tile_kernels<double>();

}  // namespace lhkernels
