// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

namespace conclave::testing {

// The generator of docs/qwen3.5-moe appendix C: replayable on any machine.
class Seeded {
 public:
  explicit Seeded(uint32_t seed) : state_(seed) {}
  uint32_t Next() { return state_ = state_ * 1664525u + 1013904223u; }
  // Uniform in [-amplitude, amplitude).
  double Real(double amplitude = 1.0) {
    return (static_cast<double>(Next() >> 8) / 16777216.0 * 2.0 - 1.0) *
           amplitude;
  }
  // Uniform in [0, n).
  int32_t Int(int32_t n) {
    return static_cast<int32_t>((static_cast<uint64_t>(Next()) * n) >> 32);
  }
  std::vector<float> Floats(size_t count, double amplitude = 1.0) {
    std::vector<float> out(count);
    for (float& x : out) x = static_cast<float>(Real(amplitude));
    return out;
  }

 private:
  uint32_t state_;
};

// ||a - b|| / ||b||, in double; b is the reference.
inline double RelativeError(const float* a, const float* b, size_t n) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < n; ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    norm += static_cast<double>(b[i]) * b[i];
  }
  if (norm == 0) return difference == 0 ? 0 : 1;
  return __builtin_sqrt(difference / norm);
}

}  // namespace conclave::testing
