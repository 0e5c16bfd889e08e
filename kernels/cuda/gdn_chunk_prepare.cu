// SPDX-License-Identifier: Apache-2.0
// The chunked form, first kernel: what needs no state, for all windows at
// once. A block has one key head of a window, with the value heads that share
// it: k.k and q.k on tensor cores, the inverse in float32 by substitution.
#include "kernels/cuda/gdn_chunk.cuh"

namespace conclave::kernels::cuda::gdn {
namespace {

constexpr int kThreads = 256;
constexpr int kHeadsAtOnce = 4;  // of the value heads of a key head
constexpr int kHeadThreads = kThreads / kHeadsAtOnce;  // one per column
constexpr int kStrip = 16;  // rows of the inverse made at once
constexpr int kSquare = kWindow * kWindow;
// A decay below is taken for it: nothing of a state is left after it either,
// and sums of logarithms stay small enough to be subtracted.
constexpr float kLogDecayMin = -64.0f;  // of 2
static_assert(kHeadThreads == kWindow);

struct Shared {
  // Keys and queries of the window; then L, and in its place the inverse, of
  // each value head.
  alignas(16) float room[kHeadsAtOnce][kSquare];
  float products[2][kSquare];  // k.k, q.k; lower triangles
  // Of the window's rows up to each, base 2.
  float log_decay[kHeadsAtOnce][kWindow];
  float beta[kHeadsAtOnce][kWindow];
  float own_score[kHeadsAtOnce][kWindow];  // k.q of each row, not rounded

  __device__ float* Rows(int which) { return room[which * 2]; }
};
static_assert(2 * kWindow * kHeadDim == kHeadsAtOnce * kSquare);

struct Window {
  int begin = 0;  // its first row
  int rows = 0;   // 0: there is no such window
};

// Sequence s has the windows row_begin[s] / 64 + s and on: the next one begins
// after them, so numbers are below rows / 64 + sequences, some of them of no
// window. All lanes of a warp call it.
__device__ __forceinline__ Window FindWindow(const DeviceStep& step,
                                             int index) {
  const int lane = threadIdx.x % 32;
  int sequence = 0;
  for (int first = 0; first < step.sequences; first += 32) {
    const int s = first + lane;
    const bool before =
        s < step.sequences && __ldcg(step.row_begin + s) / kWindow + s <= index;
    const unsigned found = __ballot_sync(kWholeWarp, before);
    if (found != 0) sequence = first + 31 - __clz(static_cast<int>(found));
    if (found != kWholeWarp) break;
  }
  const int begin = __ldcg(step.row_begin + sequence);
  const int end = __ldcg(step.row_begin + sequence + 1);
  const int at = begin + (index - begin / kWindow - sequence) * kWindow;
  return {at, max(0, min(kWindow, end - at))};
}

// Keys and queries into shared memory, rounded, also where they came from, so
// that both kernels have the same; zeros after the last row.
__device__ __forceinline__ void LoadRows(const Task& task,
                                         const Window& window,
                                         int key_head,
                                         Shared* shared) {
  constexpr int kPieces = kHeadDim / 4;
  const int piece = threadIdx.x % kPieces * 4;
  const int channels[2] = {task.KeyAt(key_head), task.QueryAt(key_head)};
#pragma unroll
  for (int which = 0; which < 2; ++which) {
#pragma unroll 4
    for (int row = threadIdx.x / kPieces; row < kWindow;
         row += kThreads / kPieces) {
      Quad x;
      if (row < window.rows) {
        float* from =
            task.mixed +
            static_cast<size_t>(window.begin + row) * task.Channels() +
            channels[which] + piece;
        x = Load(from);
#pragma unroll
        for (float& value : x.x) value = Tf32(value);
        Store(from, x);
      }
      Store(shared->Rows(which) + row * kHeadDim + (piece ^ Turn(row)), x);
    }
  }
}

// A warp: 16 rows of one product, up to the diagonal.
__device__ __forceinline__ void MultiplyRows(Shared* shared) {
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int which = warp / 4;
  const int first = warp % 4 * 16;
  const float* left = shared->Rows(which) + first * kHeadDim;
  const float* keys = shared->Rows(0);
  float sum[kWindow / kTile][4] = {};
#pragma unroll
  for (int run = 0; run < kKeyTiles; ++run) {
    const float2 low = RunPair<kHeadDim>(left, run);
    const float2 high = RunPair<kHeadDim>(left + kTile * kHeadDim, run);
    const float a[4] = {low.x, high.x, low.y, high.y};
#pragma unroll
    for (int i = 0; i < kWindow / kTile; ++i) {
      if (i * kTile >= first + 16) continue;
      const float2 b = RunPair<kHeadDim>(keys + i * kTile * kHeadDim, run);
      MultiplyAddTf32(sum[i], a, b.x, b.y);
    }
  }
  float* to = shared->products[which] + (first + g) * kWindow;
#pragma unroll
  for (int i = 0; i < kWindow / kTile; ++i) {
    const int at = (i * kTile) ^ Turn(g);
    *reinterpret_cast<float2*>(to + at + t * 2) =
        make_float2(sum[i][0], sum[i][1]);
    *reinterpret_cast<float2*>(to + kTile * kWindow + at + t * 2) =
        make_float2(sum[i][2], sum[i][3]);
  }
}

// One warp: logarithms and betas of a head's rows, and its gates anew.
__device__ __forceinline__ void MakeGates(const Task& task,
                                          const Window& window,
                                          uint64_t slots,
                                          int head,
                                          int at,
                                          Shared* shared) {
  float* log_decay = shared->log_decay[at];
  const int lane = threadIdx.x % 32;
  float4 gates[2];
  float sum[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane * 2 + i;
    gates[i] = make_float4(1, 0, 0, 0);
    if (row < window.rows) {
      gates[i] = __ldcg(
          task.gates +
          static_cast<size_t>(window.begin + row) * task.value_heads + head);
    }
    sum[i] = fmaxf(log2f(gates[i].x), kLogDecayMin);
    shared->beta[at][row] = gates[i].y;
    shared->own_score[at][row] = gates[i].z;
  }
  sum[1] += sum[0];
  float before = sum[1];  // of the lanes before and this one
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const float other = __shfl_up_sync(kWholeWarp, before, distance);
    if (lane >= distance) before += other;
  }
  before = __shfl_up_sync(kWholeWarp, before, 1);
  if (lane == 0) before = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) log_decay[lane * 2 + i] = before + sum[i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = lane * 2 + i;
    if (row >= window.rows) continue;
    const int first = FirstOfChunk(slots, row);
    const int last = LastOfChunk(slots, row, window.rows);
    const float own = log_decay[row];
    gates[i].x = exp2f(own - (first == 0 ? 0.0f : log_decay[first - 1]));
    gates[i].z = exp2f(log_decay[last] - own);
    task.gates[static_cast<size_t>(window.begin + row) * task.value_heads +
               head] = gates[i];
  }
}

// A thread: column `column` of L, and of A, which it writes.
__device__ __forceinline__ void FillColumn(const Window& window,
                                           int last,
                                           int column,
                                           const Shared& shared,
                                           int at,
                                           float* lower,
                                           float* scores) {
  const float* log_decay = shared.log_decay[at];
  const float own = log_decay[column];
#pragma unroll 4
  for (int row = column / 32 * 32; row < kWindow; ++row) {
    const int from = row * kWindow + (column ^ Turn(row));
    float l = 0;
    float a = 0;
    if (column <= row && row <= last) {
      const float ratio = exp2f(log_decay[row] - own);
      // A row whose past is forgotten has nothing else in its sum, and the
      // norm that follows would show how it was rounded.
      a = column == row ? shared.own_score[at][row]
                        : shared.products[1][from] * ratio;
      if (column < row) {
        l = shared.beta[at][row] * shared.products[0][from] * ratio;
      }
    }
    lower[row * kWindow + column] = l;
    if (row < window.rows) scores[row * kWindow + column] = Tf32(a);
  }
}

// A thread: rows [first, first + 16) of one column of (I + L)^-1. `lower` has
// the inverse in the rows before and L from there on.
__device__ __forceinline__ void Substitute(const float* lower,
                                           int first,
                                           int column,
                                           float (&x)[kStrip]) {
#pragma unroll
  for (int r = 0; r < kStrip; ++r) x[r] = first + r == column ? 1.0f : 0.0f;
  const float* rows = lower + first * kWindow;
  const auto quad = [rows](int r, int at) {
    return *reinterpret_cast<const Quad*>(rows + r * kWindow + at);
  };
  for (int at = column / 32 * 32; at < first; at += 4) {
    float done[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) done[j] = lower[(at + j) * kWindow + column];
#pragma unroll
    for (int r = 0; r < kStrip; ++r) {
      const Quad l = quad(r, at);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[r] = __fmaf_rn(-l.x[j], done[j], x[r]);
    }
  }
#pragma unroll
  for (int r = 1; r < kStrip; ++r) {
#pragma unroll
    for (int at = 0; at < r; at += 4) {
      const Quad l = quad(r, first + at);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (at + j < r) x[r] = __fmaf_rn(-l.x[j], x[at + j], x[r]);
      }
    }
  }
}

// The inverse of a head's L, by the 64 threads of `lower`; all threads of the
// block call it, since they wait for each other.
__device__ __forceinline__ void Invert(
    const Window& window, bool active, int column, float* lower, float* to) {
#pragma unroll 1
  for (int first = 0; first < kWindow; first += kStrip) {
    // Above the diagonal by half the window: zeros that nobody reads.
    const bool works = active && column / 32 * 32 <= first;
    float x[kStrip];
    if (works) Substitute(lower, first, column, x);
    __syncthreads();
    if (works) {
#pragma unroll
      for (int r = 0; r < kStrip; ++r) {
        const int at = (first + r) * kWindow + column;
        lower[at] = x[r];
        if (first + r < window.rows) to[at] = Tf32(x[r]);
      }
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads, 2)
    PrepareWindow(const __grid_constant__ Task task) {
  extern __shared__ uint4 memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int key_head = blockIdx.y;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const Window window = FindWindow(task.step, blockIdx.x);
  if (window.rows == 0) return;
  const int lane = threadIdx.x % 32;
  const auto slot_of = [&](int row) {
    return row < window.rows ? __ldcg(task.step.slot_out + window.begin + row)
                             : -1;
  };
  const uint64_t slots = SlotBits(slot_of(lane), slot_of(lane + 32));
  LoadRows(task, window, key_head, &shared);
  __syncthreads();
  MultiplyRows(&shared);
  const int group = task.value_heads / task.key_heads;
  const int at = threadIdx.x / kHeadThreads;
  const int column = threadIdx.x % kHeadThreads;
  const int last = LastOfChunk(slots, column, window.rows);
  for (int i = 0; i < group; i += kHeadsAtOnce) {
    const int head = key_head * group + i + at;
    const bool active = i + at < group;
    const size_t square =
        (static_cast<size_t>(head) * task.step.rows + window.begin) * kWindow;
    if (active && column < 32) {
      MakeGates(task, window, slots, head, at, &shared);
    }
    __syncthreads();  // the first time also: keys and queries were used
    if (active) {
      FillColumn(window,
                 last,
                 column,
                 shared,
                 at,
                 shared.room[at],
                 task.scores + square);
    }
    __syncthreads();
    Invert(window, active, column, shared.room[at], task.inverse + square);
  }
}

}  // namespace

absl::Status PrepareChunks(DeviceQueue* queue, const Task& task) {
  const Grid grid{.blocks = dim3(task.step.rows / kWindow + task.step.sequences,
                                 task.key_heads),
                  .threads = dim3(kThreads),
                  .shared_bytes = sizeof(Shared)};
  return cuda::Launch(
      queue, "the GDN chunks without state", PrepareWindow, grid, task);
}

}  // namespace conclave::kernels::cuda::gdn
