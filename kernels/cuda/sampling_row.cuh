// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/device_sampling.h"

// One row of logits as the sampling kernels see it: values after penalties,
// their order, and their weights. All sums are of integers, so they do not
// depend on the order in which threads come.
namespace conclave::kernels::cuda {

constexpr int kSampleThreads = 1024;
constexpr int kSampleWarps = kSampleThreads / 32;
// Blocks that share a row: enough to read 1 MB in a few microseconds.
constexpr int kSampleParts = 16;
// Loads that a thread has in flight; L2 answers after some 600 cycles.
constexpr int kSampleBatch = 8;
// Of the largest weight, 1: so many that 2^21 of them (the largest vocabulary)
// add up in 64 bits.
constexpr double kWeightUnits = 0x1p42;
// exp(-32) is less than half a unit: what is farther weighs nothing.
constexpr double kReach = 32;

// A token's place in the order of a row: higher values first, then lower ids.
// Ranks of different tokens differ; larger is better.
constexpr uint64_t kNotFinite = ~uint64_t{0};  // above all ranks of numbers

__device__ __forceinline__ uint64_t RankOf(float value, int32_t id) {
  const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));  // -0 to 0
  const uint32_t key = bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t{key} << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

__device__ __forceinline__ float ValueOf(uint64_t rank) {
  const auto key = static_cast<uint32_t>(rank >> 32);
  return __uint_as_float(key >> 31 != 0 ? key & 0x7fffffffu : ~key);
}

__device__ __forceinline__ int32_t IdOf(uint64_t rank) {
  return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(rank));
}

__device__ __forceinline__ bool IsNumber(float x) {
  return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u;
}

struct SampleRow {
  const float* logits = nullptr;
  const int32_t* counts = nullptr;  // null: no penalties
  int32_t vocab_used = 0;
  float repetition = 1;
  double presence = 0;
  double frequency = 0;
  // Known once the best rank is:
  float largest = 0;
  double scale = 1;  // 1 / temperature
};

__device__ __forceinline__ bool IsGreedy(const DeviceSampling& how) {
  return !(how.temperature > 0) || how.top_k == 1;
}

// Whether there is a least rank to find; min-p needs none.
__device__ __forceinline__ bool HasCut(const DeviceSampling& how) {
  return how.top_k > 0 || how.top_p < 1;
}

__device__ __forceinline__ SampleRow RowOf(const DeviceSampling& how,
                                           const float* logits,
                                           const int32_t* counts,
                                           int32_t vocab_used) {
  SampleRow row;
  row.logits = logits;
  row.vocab_used = vocab_used;
  row.repetition = static_cast<float>(how.repetition_penalty);
  row.presence = how.presence_penalty;
  row.frequency = how.frequency_penalty;
  if (row.repetition != 1 || row.presence != 0 || row.frequency != 0) {
    row.counts = counts + static_cast<int64_t>(how.counts_row) * vocab_used;
  }
  return row;
}

// As Sampler::Penalise rounds, one operation at a time.
__device__ __forceinline__ float Penalised(const SampleRow& row,
                                           float x,
                                           int32_t count) {
  const bool in_prompt = count < 0;
  const int32_t times = in_prompt ? -1 - count : count;
  if (row.repetition != 1 && (in_prompt || times > 0)) {
    x = x > 0 ? __fdiv_rn(x, row.repetition) : __fmul_rn(x, row.repetition);
  }
  if (times > 0 && (row.presence != 0 || row.frequency != 0)) {
    x = __fsub_rn(x,
                  __double2float_rn(__dadd_rn(
                      row.presence, __dmul_rn(row.frequency, times))));
  }
  return x;
}

// x[j]: of id + j * kSampleThreads, penalised; 0 from `end` on.
__device__ __forceinline__ void LoadBatch(const SampleRow& row,
                                          int32_t id,
                                          int32_t end,
                                          float (&x)[kSampleBatch]) {
#pragma unroll
  for (int j = 0; j < kSampleBatch; ++j) {
    const int32_t at = id + j * kSampleThreads;
    x[j] = at < end ? row.logits[at] : 0.0f;
  }
  if (row.counts == nullptr) return;
  int32_t counts[kSampleBatch];
#pragma unroll
  for (int j = 0; j < kSampleBatch; ++j) {
    const int32_t at = id + j * kSampleThreads;
    counts[j] = at < end ? row.counts[at] : 0;
  }
#pragma unroll
  for (int j = 0; j < kSampleBatch; ++j) x[j] = Penalised(row, x[j], counts[j]);
}

// each(value, id) for the ids in [begin, end), spread over the block.
template <typename Each>
__device__ __forceinline__ void ForTokens(const SampleRow& row,
                                          int32_t begin,
                                          int32_t end,
                                          Each each) {
  constexpr int kStep = kSampleThreads * kSampleBatch;
  const int32_t mine = begin + static_cast<int32_t>(threadIdx.x);
  for (int32_t id = mine; id < end; id += kStep) {
    float x[kSampleBatch];
    LoadBatch(row, id, end, x);
#pragma unroll
    for (int j = 0; j < kSampleBatch; ++j) {
      const int32_t at = id + j * kSampleThreads;
      if (at < end) each(x[j], at);
    }
  }
}

// How far below the largest, in units of the exponent. Falls with x; 0 at the
// largest also where the scale is infinite.
__device__ __forceinline__ double Distance(const SampleRow& row, float x) {
  if (x == row.largest) return 0;
  return __dmul_rn(double{row.largest} - double{x}, row.scale);
}

__device__ __forceinline__ uint64_t WeightAt(double distance) {
  if (distance >= kReach) return 0;
  return __double2ull_rn(exp(-distance) * kWeightUnits);
}

// 0 for what min-p, or a rank under `least`, cuts.
__device__ __forceinline__ uint64_t KeptWeight(
    const SampleRow& row, double min_p, uint64_t least, float x, int32_t id) {
  if (RankOf(x, id) < least) return 0;
  const double distance = Distance(row, x);
  if (distance >= kReach) return 0;
  const double weight = exp(-distance);
  return weight >= min_p ? __double2ull_rn(weight * kWeightUnits) : 0;
}

}  // namespace conclave::kernels::cuda
