// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sampling_boundary.cuh"
#include "kernels/cuda/sampling_row.cuh"
#include "kernels/cuda/sampling_select.cuh"
#include "kernels/device_sampling.h"

// Three kernels, each with kSampleParts blocks a row: the best token; the least
// rank that top-k and top-p keep; the draw. Rows that need no more leave at
// once. Where a row's parts come together, the last block of the row goes on.
namespace conclave::kernels {
namespace {

using namespace cuda;  // NOLINT: this file's own headers

static_assert(limits::kVocabMax <= 0x1p63 / kWeightUnits);

// Of one row; device memory that lives from the first kernel to the last.
struct RowScratch {
  uint64_t best[kSampleParts];    // ranks, or kNotFinite
  uint64_t weight[kSampleParts];  // of the tokens that are kept
  uint64_t least;                 // rank that is kept
  uint32_t tickets[2];            // of the last two kernels
  uint64_t bin_weight[kSampleParts][kSampleBins];
  uint32_t bin_count[kSampleParts][kSampleBins];
};

struct SampleArguments {
  const float* logits = nullptr;
  int32_t vocab = 0;
  int32_t vocab_used = 0;
  const DeviceSampling* sampling = nullptr;
  const int32_t* counts = nullptr;
  int32_t* token = nullptr;
  RowScratch* scratch = nullptr;  // [rows]
};

struct Slice {
  int32_t begin = 0;
  int32_t end = 0;
};

// Ids of a part, whole cache lines of them; later parts may have none.
__device__ Slice SliceOf(int32_t part, int32_t vocab_used) {
  const int32_t each = ((vocab_used - 1) / kSampleParts / 32 + 1) * 32;
  return {min(part * each, vocab_used), min((part + 1) * each, vocab_used)};
}

__device__ SampleRow RowOfBlock(const SampleArguments& in,
                                const DeviceSampling& how) {
  return RowOf(how,
               in.logits + static_cast<int64_t>(blockIdx.y) * in.vocab,
               in.counts,
               in.vocab_used);
}

// Of all parts, of the kernel before.
__device__ uint64_t BestOfRow(const RowScratch& scratch) {
  uint64_t best = 0;
  for (const uint64_t& part : scratch.best) best = max(best, __ldcg(&part));
  return best;
}

// True in the block that comes here last of its row; it sees what the others
// wrote before.
__device__ bool IsLastOfRow(uint32_t* ticket) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == kSampleParts - 1;
  __syncthreads();
  __threadfence();
  return last;
}

__global__ void __launch_bounds__(kSampleThreads)
    FindBest(const SampleArguments in) {
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int32_t part = static_cast<int32_t>(blockIdx.x);
  RowScratch& scratch = in.scratch[blockIdx.y];
  if (part == 0 && threadIdx.x < 2) scratch.tickets[threadIdx.x] = 0;
  const SampleRow row = RowOfBlock(in, in.sampling[blockIdx.y]);
  const Slice slice = SliceOf(part, in.vocab_used);
  uint64_t best = 0;
  ForTokens(row, slice.begin, slice.end, [&](float x, int32_t id) {
    best = max(best, IsNumber(x) ? RankOf(x, id) : kNotFinite);
  });
  best = MaxOfBlock(best);
  if (threadIdx.x == 0) scratch.best[part] = best;
}

// The first histogram of the whole row, a bin a thread.
__device__ Mass MergedBin(const RowScratch& scratch) {
  Mass out = {};
  if (threadIdx.x >= kSampleBins) return out;
  for (int part = 0; part < kSampleParts; ++part) {
    out = out + Mass{__ldcg(&scratch.bin_weight[part][threadIdx.x]),
                     __ldcg(&scratch.bin_count[part][threadIdx.x])};
  }
  return out;
}

// Tokens without weight are in no bin: they are never drawn, so it does not
// matter whether top-k keeps them.
__device__ uint64_t LeastKept(const SampleRow& row,
                              const DeviceSampling& how,
                              const Mass& mine,
                              SelectMemory& s) {
  const Mass all = ScanBlock(mine, s.warps).all;
  Boundary kept = {.rank = 0, .weight = all.weight};
  if (how.top_k > 0 && static_cast<uint32_t>(how.top_k) < all.count) {
    kept =
        FindBoundary(row, mine, {false, static_cast<uint64_t>(how.top_k)}, s);
  }
  if (how.top_p < 1) {
    const double part = how.top_p * __ull2double_rn(kept.weight);
    const uint64_t amount = min(kept.weight, uint64_t{__double2ull_ru(part)});
    kept = FindBoundary(row, mine, {true, max(amount, uint64_t{1})}, s);
  }
  return kept.rank;
}

// Also writes the token of rows that need no draw.
__global__ void __launch_bounds__(kSampleThreads)
    FindLeast(const SampleArguments in) {
  __shared__ SelectMemory s;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int32_t part = static_cast<int32_t>(blockIdx.x);
  const DeviceSampling& how = in.sampling[blockIdx.y];
  const bool cuts = HasCut(how) && !IsGreedy(how);
  if (part != 0 && !cuts) return;
  RowScratch& scratch = in.scratch[blockIdx.y];
  const uint64_t best = BestOfRow(scratch);
  if (best == kNotFinite || IsGreedy(how)) {
    if (part == 0 && threadIdx.x == 0) {
      in.token[blockIdx.y] = best == kNotFinite ? -1 : IdOf(best);
    }
    return;
  }
  if (!cuts) return;
  SampleRow row = RowOfBlock(in, how);
  row.largest = ValueOf(best);
  row.scale = 1.0 / how.temperature;
  const Slice slice = SliceOf(part, in.vocab_used);
  ClearBins(s);
  ForTokens(row, slice.begin, slice.end, [&](float x, int32_t) {
    const double distance = Distance(row, x);
    if (distance >= kReach) return;
    AddToBin(s, static_cast<uint32_t>(BinAt(distance)), WeightAt(distance));
  });
  __syncthreads();
  if (threadIdx.x < kSampleBins) {
    const Mass mine = MassOfBin(s, threadIdx.x);
    scratch.bin_weight[part][threadIdx.x] = mine.weight;
    scratch.bin_count[part][threadIdx.x] = mine.count;
  }
  if (!IsLastOfRow(&scratch.tickets[0])) return;
  const uint64_t least = LeastKept(row, how, MergedBin(scratch), s);
  if (threadIdx.x == 0) scratch.least = least;
}

// The id in the slice, in their order, by which the weights of the row exceed
// `target`; `before` is that of the slices before. One thread writes it.
__device__ void FindToken(const SampleRow& row,
                          double min_p,
                          uint64_t least,
                          const Slice& slice,
                          uint64_t before,
                          uint64_t target,
                          int32_t* token) {
  __shared__ Mass warps[kSampleWarps];
  const int32_t first = slice.begin + static_cast<int32_t>(threadIdx.x);
  for (int32_t base = 0; slice.begin + base < slice.end;
       base += kSampleThreads * kSampleBatch) {
    float x[kSampleBatch];
    LoadBatch(row, first + base, slice.end, x);
#pragma unroll
    for (int j = 0; j < kSampleBatch; ++j) {
      const int32_t id = first + base + j * kSampleThreads;
      Mass mine = {};
      if (id < slice.end) mine.weight = KeptWeight(row, min_p, least, x[j], id);
      const Scanned scanned = ScanBlock(mine, warps);
      const uint64_t upto = before + scanned.upto.weight;
      if (upto > target && upto - mine.weight <= target) *token = id;
      before += scanned.all.weight;
      if (before > target) return;
    }
  }
}

__global__ void __launch_bounds__(kSampleThreads)
    DrawToken(const SampleArguments in) {
  __shared__ Mass warps[kSampleWarps];
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int32_t part = static_cast<int32_t>(blockIdx.x);
  const DeviceSampling& how = in.sampling[blockIdx.y];
  if (IsGreedy(how)) return;
  RowScratch& scratch = in.scratch[blockIdx.y];
  const uint64_t best = BestOfRow(scratch);
  if (best == kNotFinite) return;
  SampleRow row = RowOfBlock(in, how);
  row.largest = ValueOf(best);
  row.scale = 1.0 / how.temperature;
  const double min_p = how.min_p;
  const uint64_t least = HasCut(how) ? __ldcg(&scratch.least) : 0;
  const Slice slice = SliceOf(part, in.vocab_used);
  Mass mine = {};
  ForTokens(row, slice.begin, slice.end, [&](float x, int32_t id) {
    mine.weight += KeptWeight(row, min_p, least, x, id);
  });
  mine = ScanBlock(mine, warps).all;
  if (threadIdx.x == 0) scratch.weight[part] = mine.weight;
  if (!IsLastOfRow(&scratch.tickets[1])) return;
  uint64_t total = 0;
  for (const uint64_t& weight : scratch.weight) total += __ldcg(&weight);
  if (total == 0) {  // min_p over 1
    if (threadIdx.x == 0) in.token[blockIdx.y] = IdOf(best);
    return;
  }
  const double drawn = how.uniform * __ull2double_rn(total);
  const uint64_t target = min(total - 1, uint64_t{__double2ull_rd(drawn)});
  int32_t chosen = 0;
  uint64_t before = 0;
  for (; chosen < kSampleParts - 1; ++chosen) {
    const uint64_t next = before + __ldcg(&scratch.weight[chosen]);
    if (next > target) break;
    before = next;
  }
  FindToken(row,
            min_p,
            least,
            SliceOf(chosen, in.vocab_used),
            before,
            target,
            in.token + blockIdx.y);
}

// Rows of one sequence may come in one step, so the counts are added to by
// atomics; a count never changes its sign.
__global__ void CountTokens(const int32_t* token,
                            const DeviceSampling* sampling,
                            int32_t rows,
                            int32_t vocab_used,
                            int32_t* counts) {
  LetNextKernelBegin();
  WaitForKernelBefore();
  const auto r = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (r >= rows || token[r] < 0 || token[r] >= vocab_used) return;
  int32_t* count = counts +
                   static_cast<int64_t>(sampling[r].counts_row) * vocab_used +
                   token[r];
  atomicAdd(count, __ldcg(count) < 0 ? -1 : 1);
}

// The grid's second dimension.
constexpr int32_t kRowsMax = 65535;

absl::Status Check(int32_t rows, int32_t vocab, int32_t vocab_used) {
  if (rows < 0 || rows > kRowsMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling on the GPU: ", rows, " rows"));
  }
  if (vocab_used < 1 || vocab_used > limits::kVocabMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling on the GPU: vocab_used is ",
                     vocab_used,
                     ", must be in [1, ",
                     limits::kVocabMax,
                     "]"));
  }
  if (vocab < vocab_used) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling on the GPU: rows of ",
                     vocab,
                     " logits, vocab_used is ",
                     vocab_used));
  }
  return absl::OkStatus();
}

}  // namespace

size_t SamplingScratchBytes(int32_t rows, int32_t) {
  return static_cast<size_t>(std::max(rows, 0)) * sizeof(RowScratch);
}

absl::Status DeviceSample(DeviceQueue* queue,
                          const float* logits,
                          int32_t rows,
                          int32_t vocab,
                          int32_t vocab_used,
                          const DeviceSampling* sampling,
                          const int32_t* counts,
                          void* scratch,
                          int32_t* token) {
  RETURN_IF_ERROR(Check(rows, vocab, vocab_used));
  if (rows == 0) return absl::OkStatus();
  const SampleArguments in = {.logits = logits,
                              .vocab = vocab,
                              .vocab_used = vocab_used,
                              .sampling = sampling,
                              .counts = counts,
                              .token = token,
                              .scratch = static_cast<RowScratch*>(scratch)};
  const Grid grid = {.blocks = dim3(kSampleParts, static_cast<unsigned>(rows)),
                     .threads = dim3(kSampleThreads)};
  RETURN_IF_ERROR(Launch(queue, "finding the best token", FindBest, grid, in));
  RETURN_IF_ERROR(Launch(queue, "cutting the tokens", FindLeast, grid, in));
  return Launch(queue, "drawing the token", DrawToken, grid, in);
}

absl::Status DeviceCount(DeviceQueue* queue,
                         const int32_t* token,
                         const DeviceSampling* sampling,
                         int32_t rows,
                         int32_t vocab_used,
                         int32_t* counts) {
  RETURN_IF_ERROR(Check(rows, vocab_used, vocab_used));
  if (rows == 0) return absl::OkStatus();
  constexpr int32_t kThreads = 128;
  const Grid grid = {
      .blocks = dim3(static_cast<unsigned>((rows + kThreads - 1) / kThreads)),
      .threads = dim3(kThreads)};
  return Launch(queue,
                "counting the tokens",
                CountTokens,
                grid,
                token,
                sampling,
                rows,
                vocab_used,
                counts);
}

}  // namespace conclave::kernels
