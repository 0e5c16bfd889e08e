// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/attention_job.cuh"
#include "kernels/cuda/cuda_status.h"

namespace conclave::kernels {
namespace cuda::attention {

namespace {

// A part has this many chunks at least: below, combining costs more.
constexpr int32_t kChunksPerSplitMin = 2;
// What a block costs beside its chunks (its start, the merge, and the write
// and read of its part), in times of a chunk. An estimate; results are right
// with any.
constexpr int64_t kBlockCost = 4;

size_t PartialsMax(const DeviceQueue& queue) {
  return static_cast<size_t>(kPartialsPerMultiprocessor) *
         queue.multiprocessors();
}

// Into how many parts contexts of up to `chunks` chunks are cut, so that the
// waves of blocks end soonest. blocks: of an uncut step.
int32_t SplitsOf(const DeviceQueue& queue,
                 int64_t units,
                 int64_t blocks,
                 int64_t chunks) {
  const int64_t processors = queue.multiprocessors();
  const int64_t most =
      std::min<int64_t>({chunks / kChunksPerSplitMin,
                         static_cast<int64_t>(PartialsMax(queue)) / units,
                         kSplitsMax});
  int64_t best = 1;
  int64_t best_cost = INT64_MAX;
  for (int64_t splits = 1; splits <= std::max<int64_t>(most, 1); ++splits) {
    const int64_t waves = (blocks * splits + processors - 1) / processors;
    const int64_t cost = waves * ((chunks + splits - 1) / splits + kBlockCost);
    if (cost >= best_cost) continue;
    best = splits;
    best_cost = cost;
  }
  return static_cast<int32_t>(best);
}

size_t QueryFloats(const AttentionShape& shape, int32_t rows) {
  const int32_t fragments = shape.kv_heads * kGroupHeads * kHeadDim / 2;
  return static_cast<size_t>(rows) *
         std::max(shape.heads * kHeadDim, fragments);
}

absl::Status Check(const AttentionShape& shape,
                   const DeviceKv& cache,
                   const DeviceStep& step) {
  if (shape.head_dim != kHeadDim || shape.block_tokens != kBlockTokens ||
      shape.rotary_dim < 0 || shape.rotary_dim > kHeadDim ||
      shape.rotary_dim % 2 != 0 || shape.kv_heads < 1 ||
      shape.heads < shape.kv_heads || shape.heads % shape.kv_heads != 0 ||
      shape.heads / shape.kv_heads > kGroupHeads) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention on the GPU: head_dim ",
        shape.head_dim,
        " (must be 256), rotary_dim ",
        shape.rotary_dim,
        " (even, up to 256), block_tokens ",
        shape.block_tokens,
        " (must be 64), ",
        shape.heads,
        " heads over ",
        shape.kv_heads,
        " KV heads (a multiple, up to 16): use the CPU for this model"));
  }
  if (cache.dtype != KvDType::kF32 && cache.dtype != KvDType::kBF16 &&
      cache.dtype != KvDType::kFp8) {
    return absl::InvalidArgumentError(absl::StrCat(
        "attention on the GPU: no KV type ", static_cast<int>(cache.dtype)));
  }
  if (step.sequences < 1 || step.sequences > step.rows || step.rows_max < 1 ||
      step.positions_max < step.rows_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("attention on the GPU: a step of ",
                     step.rows,
                     " rows over ",
                     step.sequences,
                     " sequences, of up to ",
                     step.rows_max,
                     " rows and ",
                     step.positions_max,
                     " positions, is none"));
  }
  return absl::OkStatus();
}

// Of a context, by the type that decides how many keys a load holds.
int64_t ChunksOf(KvDType dtype, int32_t positions) {
  const int32_t keys =
      4 * (dtype == KvDType::kFp8 ? KvOf<KvDType::kFp8>::kWide
                                  : KvOf<KvDType::kBF16>::kWide);
  return (static_cast<int64_t>(positions) + keys - 1) / keys;
}

}  // namespace
}  // namespace cuda::attention

absl::Status DeviceAttention(DeviceQueue* queue,
                             const AttentionShape& shape,
                             const DeviceAttentionWeights& weights,
                             const DeviceKv& cache,
                             const DeviceStep& step,
                             const float* projected,
                             float* scratch,
                             const DeviceRows& y) {
  namespace own = cuda::attention;
  if (step.rows == 0) return absl::OkStatus();
  RETURN_IF_ERROR(own::Check(shape, cache, step));
  own::AttentionJob job;
  job.heads = shape.heads;
  job.kv_heads = shape.kv_heads;
  job.ratio = shape.heads / shape.kv_heads;
  job.projected_stride = 2 * (shape.heads + shape.kv_heads) * own::kHeadDim;
  job.step = step;
  job.projected = projected;
  job.cache = static_cast<char*>(cache.data);
  job.q = scratch;
  job.stats = scratch + own::QueryFloats(shape, step.rows);
  job.partial = job.stats + 2 * own::kGroupHeads * own::PartialsMax(*queue);
  job.y = y.data;
  job.y_bf16 = y.bf16;
  RETURN_IF_ERROR(own::LaunchPrepare(queue,
                                     cache.dtype,
                                     job,
                                     {.q = weights.q_norm,
                                      .k = weights.k_norm,
                                      .eps = shape.eps,
                                      .rotary_dim = shape.rotary_dim,
                                      .rope_theta = shape.rope_theta}));
  if (cache.dtype == KvDType::kF32) return own::LaunchAttendF32(queue, job);
  const int64_t units = static_cast<int64_t>(step.rows) * shape.kv_heads;
  const bool tiles = step.rows_max > 1;
  job.splits = own::SplitsOf(
      *queue,
      units,
      tiles ? static_cast<int64_t>(own::TilesMax(step)) * shape.kv_heads
            : units,
      own::ChunksOf(cache.dtype, step.positions_max));
  RETURN_IF_ERROR(tiles ? own::LaunchAttendTiles(queue, cache.dtype, job)
                        : own::LaunchAttendRows(queue, cache.dtype, job));
  return job.splits > 1 ? own::LaunchCombine(queue, job) : absl::OkStatus();
}

size_t AttentionScratchFloats(const DeviceQueue& queue,
                              const AttentionShape& shape,
                              int32_t rows,
                              int32_t /*sequences*/) {
  namespace own = cuda::attention;
  constexpr size_t kPartialFloats =
      own::kGroupHeads * (2 + static_cast<size_t>(own::kHeadDim));
  return own::QueryFloats(shape, rows) +
         own::PartialsMax(queue) * kPartialFloats;
}

}  // namespace conclave::kernels
