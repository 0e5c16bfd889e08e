// SPDX-License-Identifier: Apache-2.0
// The chunked form, second kernel: through the chunks of a sequence with the
// state in registers. A warp has 16 columns of a head's state and needs no
// other warp: it holds their transpose as sums of products, which are first
// operands of the next products as they lie. So columns are rows of all
// products here, and keys, queries, T and A second operands from shared
// memory, where the next window arrives meanwhile.
#include "common/status_macros.h"
#include "kernels/cuda/copy_async.cuh"
#include "kernels/cuda/gdn_chunk.cuh"
#include "kernels/cuda/shared_bytes.h"

namespace conclave::kernels::cuda::gdn {
namespace {

constexpr int kWarpColumns = 16;  // of a state
constexpr int kTiles = kWindow / kTile;

template <int kColumns>
struct WindowTiles {
  alignas(16) float key[kWindow * kHeadDim];
  float query[kWindow * kHeadDim];
  float inverse[kWindow * kWindow];
  float scores[kWindow * kWindow];
  float value[kWindow * kColumns];
  float4 gates[kWindow];  // G_i, b_i, G_n / G_i, slot_out
};

// Where a block is.
struct Place {
  int head = 0;
  int key_head = 0;
  int first_column = 0;  // of the block
  int begin = 0;         // row of the window
  int rows = 0;          // of the window, not below 1
};

// Copies of a window; zeros after its last row as far as products read: 8 rows
// where no more are there. Of T and A what is not above the diagonal.
template <int kColumns>
__device__ __forceinline__ void BeginWindow(const Task& task,
                                            const Place& place,
                                            WindowTiles<kColumns>* to) {
  constexpr int kThreads = kColumns / kWarpColumns * 32;
  const int padded = place.rows <= kTile ? kTile : kWindow;
  const auto row_from = [&](int row) {
    return place.begin + min(row, place.rows - 1);
  };
#pragma unroll 2
  for (int i = threadIdx.x; i < padded * (kHeadDim / 4); i += kThreads) {
    const int row = i / (kHeadDim / 4);
    const int piece = i % (kHeadDim / 4) * 4;
    const int at = row * kHeadDim + (piece ^ Turn(row));
    const float* from = task.mixed +
                        static_cast<size_t>(row_from(row)) * task.Channels() +
                        piece;
    const bool copies = row < place.rows;
    CopyAsync16OrZero(to->key + at, from + task.KeyAt(place.key_head), copies);
    CopyAsync16OrZero(
        to->query + at, from + task.QueryAt(place.key_head), copies);
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < padded * (kWindow / 4); i += kThreads) {
    const int row = i / (kWindow / 4);
    const int piece = i % (kWindow / 4) * 4;
    if (piece >= (row / 16 + 1) * 16) continue;
    const int at = row * kWindow + (piece ^ Turn(row));
    const size_t from =
        (static_cast<size_t>(place.head) * task.step.rows + row_from(row)) *
            kWindow +
        piece;
    const bool copies = row < place.rows;
    CopyAsync16OrZero(to->inverse + at, task.inverse + from, copies);
    CopyAsync16OrZero(to->scores + at, task.scores + from, copies);
  }
#pragma unroll 2
  for (int i = threadIdx.x; i < padded * (kColumns / 4); i += kThreads) {
    const int row = i / (kColumns / 4);
    const int piece = i % (kColumns / 4) * 4;
    CopyAsync16OrZero(to->value + row * kColumns + (piece ^ Turn(row)),
                      task.mixed +
                          static_cast<size_t>(row_from(row)) * task.Channels() +
                          task.ValueAt(place.head) + place.first_column + piece,
                      row < place.rows);
  }
  for (int row = threadIdx.x; row < padded; row += kThreads) {
    CopyAsync16OrZero(
        &to->gates[row],
        task.gates + static_cast<size_t>(row_from(row)) * task.value_heads +
            place.head,
        row < place.rows);
  }
}

// Sums of products as the first operand of the next, whose summed dimension
// their columns become: 2 t and 2 t + 1 stand for t and t + 4 (RunPair).
struct Operand {
  float a[4];
  __device__ __forceinline__ explicit Operand(const float (&x)[4],
                                              float even = 1,
                                              float odd = 1)
      : a{Tf32(x[0] * even),
          Tf32(x[2] * even),
          Tf32(x[1] * odd),
          Tf32(x[3] * odd)} {}
};

// A warp's columns of a head's state. This lane has the columns `column` and
// `column` + 8, and of every 8 keys 2 t and 2 t + 1.
template <int kColumns>
struct WarpState {
  float s[kKeyTiles][4];  // [keys][column, keys; column + 8, keys]
  int column;             // of the head

  // The only ones that touch states in memory.
  template <typename T>
  __device__ __forceinline__ void Read(const T* state) {
    Visit([&](int at, float* x) { *x = LoadNumber(state + at); });
  }
  template <typename T>
  __device__ __forceinline__ void Write(T* state) {
    Visit([&](int at, float* x) { StoreNumber(state + at, *x); });
  }

  // Rows [first, last] of a window, a chunk, of the first 8 kRowTiles ones:
  // the state after them, and S'^T q of each in o, transposed as the state.
  template <int kRowTiles>
  __device__ __forceinline__ void Advance(const WindowTiles<kColumns>& window,
                                          int first,
                                          int last,
                                          float (&o)[kRowTiles][4]) {
    float rhs[kRowTiles][4] = {};  // S^T k, then what T is multiplied with
#pragma unroll
    for (int run = 0; run < kKeyTiles; ++run) {
      const Operand state(s[run]);
#pragma unroll
      for (int i = 0; i < kRowTiles; ++i) {
        const int at = i * kTile * kHeadDim;
        const float2 k = RunPair<kHeadDim>(window.key + at, run);
        MultiplyAddTf32(rhs[i], state.a, k.x, k.y);
        const float2 q = RunPair<kHeadDim>(window.query + at, run);
        MultiplyAddTf32(o[i], state.a, q.x, q.y);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
      Gate(window, i, first, last, &rhs[i], &o[i]);
    }
    float delta[kRowTiles][4] = {};
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      const Operand x(rhs[j]);
#pragma unroll
      for (int i = j; i < kRowTiles; ++i) {
        const float2 t =
            RunPair<kWindow>(window.inverse + i * kTile * kWindow, j);
        MultiplyAddTf32(delta[i], x.a, t.x, t.y);
      }
    }
    AddDeltas(window, window.gates[last].x, delta, o);
  }

 private:
  template <typename OnNumber>
  __device__ __forceinline__ void Visit(const OnNumber& on_number) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int run = 0; run < kKeyTiles; ++run) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = run * kTile + t * 2 + i % 2;
        on_number(key * kHeadDim + column + i / 2 * 8, &s[run][i]);
      }
    }
  }

  // rhs = b (v - G rhs), o = G o, of tile `i`; rhs of other chunks is 0.
  __device__ __forceinline__ void Gate(const WindowTiles<kColumns>& window,
                                       int i,
                                       int first,
                                       int last,
                                       float (*rhs)[4],
                                       float (*o)[4]) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const int row = i * kTile + t * 2 + odd;
      const float4 gates = window.gates[row];
      const bool inside = row >= first && row <= last;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int in_block = (column + half * 8) % kColumns;
        const float v = window.value[row * kColumns + (in_block ^ Turn(row))];
        float& x = (*rhs)[half * 2 + odd];
        x = inside ? gates.y * (v - gates.x * x) : 0.0f;
        (*o)[half * 2 + odd] *= gates.x;
      }
    }
  }

  // o += A d, S = G_n S + sum of G_n / G_j k_j d_j^T
  template <int kRowTiles>
  __device__ __forceinline__ void AddDeltas(const WindowTiles<kColumns>& window,
                                            float decay,
                                            const float (&delta)[kRowTiles][4],
                                            float (&o)[kRowTiles][4]) {
    const int g = threadIdx.x % 32 / 4;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (auto& run : s) {
#pragma unroll
      for (float& x : run) x *= decay;
    }
#pragma unroll
    for (int j = 0; j < kRowTiles; ++j) {
      const Operand d(delta[j]);
#pragma unroll
      for (int i = j; i < kRowTiles; ++i) {
        const float2 a =
            RunPair<kWindow>(window.scores + i * kTile * kWindow, j);
        MultiplyAddTf32(o[i], d.a, a.x, a.y);
      }
      const int even = t * 2;
      const float4* gates = window.gates + j * kTile + even;
      const Operand left(delta[j], gates[0].z, gates[1].z);
      const float* rows = window.key + (j * kTile + even) * kHeadDim + g;
#pragma unroll
      for (int run = 0; run < kKeyTiles; ++run) {
        const float* at = rows + run / 4 * 32;
        const int run_at = run % 4 * kTile;
        MultiplyAddTf32(s[run],
                        left.a,
                        at[run_at ^ Turn(even)],
                        at[kHeadDim + (run_at ^ Turn(even + 1))]);
      }
    }
  }
};

// A warp: all chunks of a window; rows of no more than kRowTiles tiles.
template <typename T, int kRowTiles, int kColumns>
__device__ __forceinline__ void RunWindow(const Task& task,
                                          const Place& place,
                                          const WindowTiles<kColumns>& window,
                                          WarpState<kColumns>* state) {
  const int lane = threadIdx.x % 32;
  const int t = threadIdx.x % 4;
  const auto slot_of = [&](int row) {
    return row < place.rows ? __float_as_int(window.gates[row].w) : -1;
  };
  const uint64_t slots = SlotBits(slot_of(lane), slot_of(lane + 32));
  float* to = task.mixed + static_cast<size_t>(place.begin) * task.Channels() +
              task.ValueAt(place.head) + state->column;
  int last = 0;
  for (int first = 0; first < place.rows; first = last + 1) {
    last = LastOfChunk(slots, first, place.rows);
    float o[kRowTiles][4] = {};
    state->template Advance<kRowTiles>(window, first, last, o);
#pragma unroll
    for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int row = i * kTile + t * 2 + j % 2;
        if (row >= first && row <= last) {
          to[static_cast<size_t>(row) * task.Channels() + j / 2 * 8] = o[i][j];
        }
      }
    }
    const int slot_out = slot_of(last);
    if (slot_out >= 0) state->Write(task.StateOf<T>(slot_out, place.head));
  }
}

// A block runs kHeadDim / kSplit value columns of one head over the windows of
// one sequence.
template <typename T, int kSplit>
__global__ void __launch_bounds__(kHeadDim / kSplit / kWarpColumns * 32)
    RunWindows(const __grid_constant__ Task task) {
  constexpr int kColumns = kHeadDim / kSplit;
  extern __shared__ uint4 memory[];
  auto* tiles = reinterpret_cast<WindowTiles<kColumns>*>(memory);  // two
  const int sequence = blockIdx.z;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int begin = __ldcg(task.step.row_begin + sequence);
  const int end = __ldcg(task.step.row_begin + sequence + 1);
  const int slot_in = __ldcg(task.step.slot_in + sequence);
  Place place;
  place.head = blockIdx.y;
  place.key_head = task.KeyHead(place.head);
  place.first_column = blockIdx.x * kColumns;
  const auto go_to = [&](int row) {
    place.begin = row;
    place.rows = min(kWindow, end - row);
  };
  go_to(begin);
  BeginWindow(task, place, &tiles[0]);
  CommitCopies();
  WarpState<kColumns> state = {};
  state.column = place.first_column + threadIdx.x / 32 * kWarpColumns +
                 threadIdx.x % 32 / 4;
  if (slot_in >= 0) state.Read(task.StateOf<T>(slot_in, place.head));
  int buffer = 0;
  for (int row = begin; row < end; row += kWindow, buffer ^= 1) {
    WaitForCopies<0>();
    __syncthreads();  // the window is there, and nobody reads the one before
    if (row + kWindow < end) {
      go_to(row + kWindow);
      BeginWindow(task, place, &tiles[buffer ^ 1]);
      CommitCopies();
    }
    go_to(row);
    if (place.rows <= kTile) {
      RunWindow<T, 1>(task, place, tiles[buffer], &state);
    } else {
      RunWindow<T, kTiles>(task, place, tiles[buffer], &state);
    }
  }
}

template <int kSplit>
absl::Status LaunchRun(DeviceQueue* queue, const Task& task) {
  constexpr int kColumns = kHeadDim / kSplit;
  const Grid grid{.blocks = dim3(kSplit, task.value_heads, task.step.sequences),
                  .threads = dim3(kColumns / kWarpColumns * 32),
                  .shared_bytes = 2 * sizeof(WindowTiles<kColumns>)};
  const auto kernel = task.state.dtype == GdnDType::kBF16
                          ? RunWindows<__nv_bfloat16, kSplit>
                          : RunWindows<float, kSplit>;
  return cuda::Launch(queue, "the GDN chunks", kernel, grid, task);
}

}  // namespace

bool CanRunChunks(const DeviceQueue& queue) {
  const absl::StatusOr<size_t> bytes = SharedBytesMax(queue);
  return bytes.ok() && *bytes >= 2 * sizeof(WindowTiles<kHeadDim / 2>);
}

absl::Status RunChunks(DeviceQueue* queue, const Task& task) {
  RETURN_IF_ERROR(PrepareChunks(queue, task));
  return HalvesFill(*queue, task) ? LaunchRun<2>(queue, task)
                                  : LaunchRun<4>(queue, task);
}

}  // namespace conclave::kernels::cuda::gdn
