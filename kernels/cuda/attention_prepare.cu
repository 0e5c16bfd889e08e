// SPDX-License-Identifier: Apache-2.0
// Norms, RoPE and the append of keys and values: a warp per row and head.
#include <cmath>
#include <numbers>

#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/launch.cuh"

namespace conclave::kernels::cuda::attention {
namespace {

constexpr int kPrepareWarps = 4;
constexpr int kLaneDims = kHeadDim / 32;

struct Turns {
  double per_position[kHeadDim / 2];  // of pair i, in whole turns
};

struct Norms {
  const float* q;
  const float* k;
  float eps;
  int32_t half;   // pairs (i, i + half) are rotated
  float q_scale;  // of the scores
};

// As the cache has it.
template <KvDType kType>
__device__ __forceinline__ typename KvOf<kType>::Element Round(float x) {
  if constexpr (kType == KvDType::kF32) {
    return x;
  } else if constexpr (kType == KvDType::kBF16) {
    return __float2bfloat16_rn(x);
  } else {
    __nv_fp8_e4m3 out;
    out.__x = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    return out;
  }
}

__device__ __forceinline__ void Norm(const float* weight,
                                     float eps,
                                     float (&x)[kLaneDims]) {
  const int lane = threadIdx.x % 32;
  float sum = 0;
#pragma unroll
  for (const float v : x) sum += v * v;
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  const float factor = 1.0f / sqrtf(sum / kHeadDim + eps);
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) {
    x[i] = x[i] * factor * weight[lane * kLaneDims + i];
  }
}

// Whole turns are taken off in double: angles are exact to a float's last bit
// at any position.
__device__ __forceinline__ void Rotate(const Turns& turns,
                                       int32_t half,
                                       int32_t position,
                                       float* x) {
  for (int i = threadIdx.x % 32; i < half; i += 32) {
    const double turn = position * turns.per_position[i];
    float s, c;
    sincospif(2.0f * static_cast<float>(turn - rint(turn)), &s, &c);
    const float a = x[i];
    const float b = x[i + half];
    x[i] = a * c - b * s;
    x[i + half] = b * c + a * s;
  }
}

// Dims 8 lane .. 8 lane + 7 of a query into the fragments of its unit.
template <KvDType kType>
__device__ __forceinline__ void StoreQuery(const AttentionJob& job,
                                           int32_t row,
                                           int32_t head,
                                           const float (&x)[kLaneDims]) {
  const int lane = threadIdx.x % 32;
  if constexpr (kType == KvDType::kF32) {
    auto* to = reinterpret_cast<float4*>(
        static_cast<float*>(job.q) +
        (static_cast<size_t>(row) * job.heads + head) * kHeadDim +
        lane * kLaneDims);
    to[0] = make_float4(x[0], x[1], x[2], x[3]);
    to[1] = make_float4(x[4], x[5], x[6], x[7]);
  } else {
    constexpr int kWide = KvOf<kType>::kWide;
    const size_t unit =
        static_cast<size_t>(row) * job.kv_heads + head / job.ratio;
    const int m = head % job.ratio;
    auto* fragments = static_cast<uint32_t*>(job.q) +
                      unit * (kGroupHeads * kHeadDim / 2) + m / 8;
#pragma unroll
    for (int four = 0; four < kLaneDims; four += 4) {
      const int dim = lane * kLaneDims + four;
      const int step = dim / (4 * kWide) * (kWide / 4) + dim % kWide / 4;
      const int to = m % 8 * 4 + dim % (4 * kWide) / kWide;
      uint32_t* registers = fragments + (step * 32 + to) * 4;
      registers[0] = Pack<kType>(x[four], x[four + 1]);
      registers[2] = Pack<kType>(x[four + 2], x[four + 3]);
    }
  }
}

template <KvDType kType>
__device__ __forceinline__ void StoreKv(const AttentionJob& job,
                                        int32_t row,
                                        int32_t kv_head,
                                        bool is_value,
                                        const float (&x)[kLaneDims]) {
  using Element = typename KvOf<kType>::Element;
  struct alignas(sizeof(Element) * kLaneDims > 16 ? 16
                                                  : sizeof(Element) * kLaneDims)
      Eight {
    Element e[kLaneDims];
  };
  const int first = threadIdx.x % 32 * kLaneDims;
  const int32_t position = job.step.position[row];
  const int32_t block =
      job.step.kv_blocks[static_cast<size_t>(job.step.sequence_of[row]) *
                             job.step.kv_stride +
                         position / kBlockTokens];
  const int token = position % kBlockTokens;
  auto* keys = reinterpret_cast<Element*>(KeysOf<kType>(job, block, kv_head));
  if (is_value) {
    Element* values =
        keys + static_cast<size_t>(job.kv_heads) * kBlockTokens * kHeadDim;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) {
      values[(first + i) * kBlockTokens + token] = Round<kType>(x[i]);
    }
  } else {
    Eight eight;
#pragma unroll
    for (int i = 0; i < kLaneDims; ++i) eight.e[i] = Round<kType>(x[i]);
    *reinterpret_cast<Eight*>(keys + token * kHeadDim + first) = eight;
  }
}

template <KvDType kType>
__global__ void __launch_bounds__(32 * kPrepareWarps)
    Prepare(const __grid_constant__ AttentionJob job,
            const __grid_constant__ Norms norms,
            const __grid_constant__ Turns turns) {
  __shared__ __align__(16) float heads[kPrepareWarps][kHeadDim];
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int lane = threadIdx.x % 32;
  const int32_t per_row = job.heads + 2 * job.kv_heads;
  const int64_t item =
      static_cast<int64_t>(blockIdx.x) * kPrepareWarps + threadIdx.x / 32;
  if (item >= static_cast<int64_t>(job.step.rows) * per_row) return;
  const auto row = static_cast<int32_t>(item / per_row);
  const auto head = static_cast<int32_t>(item % per_row);
  const bool is_query = head < job.heads;
  const bool is_value = head >= job.heads + job.kv_heads;
  // Queries lie between gates, keys and values behind all.
  const auto* from = reinterpret_cast<const float4*>(
      job.projected + static_cast<size_t>(row) * job.projected_stride +
      (is_query ? 2 * head : job.heads + head) * kHeadDim + lane * kLaneDims);
  const float4 low = from[0];
  const float4 high = from[1];
  float x[kLaneDims] = {
      low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  if (is_value) {
    StoreKv<kType>(job, row, head - job.heads - job.kv_heads, true, x);
    return;
  }
  Norm(is_query ? norms.q : norms.k, norms.eps, x);
  float* staged = heads[threadIdx.x / 32];
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) staged[lane * kLaneDims + i] = x[i];
  __syncwarp();
  Rotate(turns, norms.half, job.step.position[row], staged);
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kLaneDims; ++i) x[i] = staged[lane * kLaneDims + i];
  if (is_query) {
#pragma unroll
    for (float& v : x) v *= norms.q_scale;
    StoreQuery<kType>(job, row, head, x);
  } else {
    StoreKv<kType>(job, row, head - job.heads, false, x);
  }
}

}  // namespace

absl::Status LaunchPrepare(DeviceQueue* queue,
                           KvDType dtype,
                           const AttentionJob& job,
                           const AttentionNorms& norms) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(kHeadDim));
  const Norms given = {
      .q = norms.q,
      .k = norms.k,
      .eps = norms.eps,
      .half = norms.rotary_dim / 2,
      // Products use powers of two, float32 those of e.
      .q_scale = static_cast<float>(
          dtype == KvDType::kF32 ? scale : scale * std::numbers::log2e)};
  Turns turns = {};
  for (int32_t i = 0; i < given.half; ++i) {
    turns.per_position[i] =
        std::pow(norms.rope_theta, -2.0 * i / norms.rotary_dim) /
        (2 * std::numbers::pi);
  }
  const int64_t items =
      static_cast<int64_t>(job.step.rows) * (job.heads + 2 * job.kv_heads);
  Grid grid;
  grid.blocks =
      dim3(static_cast<unsigned>((items + kPrepareWarps - 1) / kPrepareWarps));
  grid.threads = dim3(32 * kPrepareWarps);
  void (*kernel)(AttentionJob, Norms, Turns) =
      dtype == KvDType::kF32    ? Prepare<KvDType::kF32>
      : dtype == KvDType::kBF16 ? Prepare<KvDType::kBF16>
                                : Prepare<KvDType::kFp8>;
  return Launch(queue, "preparing attention", kernel, grid, job, given, turns);
}

}  // namespace conclave::kernels::cuda::attention
