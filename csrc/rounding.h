// Conversions between float32 and the 16-bit types, written without branches so that loops over
// them vectorise. Round to nearest even, or stochastically with the bits of a counter-based hash.
#pragma once

#include <c10/util/bit_cast.h>

#include <cstdint>

namespace lhkernels {

constexpr uint32_t kBiasGap = 112u << 23;  // float32 exponents are biased by 127, float16's by 15
constexpr uint32_t kHalfMinNormal = 0x38800000;  // 2^-14 as float32 bits
constexpr uint32_t kHalfMax = 0x477fe000;        // 65504
constexpr uint32_t kHalfOverflow = 0x47800000;   // 65536
constexpr uint32_t kBfloat16Max = 0x7f7f0000;
constexpr uint32_t kInfinity = 0x7f800000;

inline float from_bits(uint32_t bits) {
  return c10::bit_cast<float>(bits);
}

inline uint32_t to_bits(float x) {
  return c10::bit_cast<uint32_t>(x);
}

inline float bfloat16_to_float(uint16_t x) {
  return from_bits(static_cast<uint32_t>(x) << 16);
}

inline uint16_t float_to_bfloat16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > kInfinity ? 0x7fc0 : rounded);
}

inline float half_to_float(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16;
  const uint32_t magnitude = x & 0x7fff;
  const uint32_t normal = (magnitude << 13) + kBiasGap;
  // An integer conversion instead of a denormal float, which the user may have set to be flushed.
  const uint32_t subnormal = to_bits(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t finite = magnitude < 0x400 ? subnormal : normal;
  return from_bits(sign | (magnitude >= 0x7c00 ? normal + kBiasGap : finite));
}

inline uint16_t float_to_half(float x) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000;
  const uint32_t magnitude = to_bits(x) & 0x7fffffff;
  const uint32_t normal = (magnitude - kBiasGap + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Adding 2^23 leaves the nearest integer multiple of 2^-24 in the low bits.
  const uint32_t subnormal = to_bits(from_bits(magnitude) * 0x1p24f + 0x1p23f) - 0x4b000000;
  const uint32_t finite = magnitude < kHalfMinNormal ? subnormal : normal;
  const uint32_t special = magnitude > kInfinity ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>(sign | (magnitude >= kHalfOverflow ? special : finite));
}

// A float32 that rounds to 16 bits as `x` itself does: inexact results get an odd last bit
// ("round to odd"), so that the second rounding can't see a tie that is none.
inline float to_odd_float(double x) {
  const float nearest = static_cast<float>(x);
  const uint32_t bits = to_bits(nearest);
  const double back = nearest;
  const bool exact = back == x || x != x || (bits & 0x7fffffff) == kInfinity || (bits & 1) != 0;
  const bool too_large = (x < 0 ? -back : back) > (x < 0 ? -x : x);
  return from_bits(exact ? bits : (too_large ? bits - 1 : bits + 1));
}

// The random bits of one chunk: element i of the chunk gets random_bits(stream, i).
struct RandomStream {
  uint32_t start;
  uint32_t twist;
};

inline uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline RandomStream random_stream(uint64_t seed, uint64_t tensor, uint64_t chunk) {
  constexpr uint64_t golden = 0x9e3779b97f4a7c15u;
  const uint64_t key = mix(mix(mix(seed + golden) + tensor + golden) + chunk + golden);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

inline uint32_t random_bits(RandomStream stream, uint32_t index) {
  uint32_t x = stream.start + index * 0x9e3779b9u;
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = ((x ^ (x >> 15)) + stream.twist) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// Up with probability (x - below) / (above - below): unbiased. Beyond the largest finite value
// there is no "above" to be unbiased with: to nearest.
inline uint16_t float_to_bfloat16_stochastic(float x, uint32_t random) {
  const uint32_t bits = to_bits(x);
  const uint32_t magnitude = bits & 0x7fffffff;
  const uint32_t to_nearest = 0x7fff + ((bits >> 16) & 1);
  const uint32_t rounded = (bits + (magnitude > kBfloat16Max ? to_nearest : random >> 16)) >> 16;
  // Not in terms of magnitude, or GCC joins the two conditions to a branch and can't vectorise.
  return static_cast<uint16_t>(x != x ? 0x7fc0 : rounded);
}

inline uint16_t float_to_half_stochastic(float x, uint32_t random) {
  const uint32_t sign = (to_bits(x) >> 16) & 0x8000;
  const uint32_t magnitude = to_bits(x) & 0x7fffffff;
  const uint32_t draw = random >> 19;  // 13 bits, as many as are dropped
  const uint32_t normal = (magnitude - kBiasGap + draw) >> 13;
  // In units of 2^-24. Half a draw keeps the sum exact for integers and the mean in the middle.
  const float threshold = (static_cast<float>(static_cast<int32_t>(draw)) + 0.5f) * 0x1p-13f;
  const bool is_subnormal = magnitude < kHalfMinNormal;
  const float units = from_bits(is_subnormal ? magnitude : 0) * 0x1p24f + threshold;
  const uint32_t subnormal = static_cast<uint32_t>(static_cast<int32_t>(units));
  const uint32_t rounded = sign | (is_subnormal ? subnormal : normal);
  return static_cast<uint16_t>(magnitude <= kHalfMax ? rounded : float_to_half(x));
}

}  // namespace lhkernels
