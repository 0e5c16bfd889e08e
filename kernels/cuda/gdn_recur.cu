// SPDX-License-Identifier: Apache-2.0
// Steps with more rows of a sequence, after the convolution: the recurrence
// over a sequence's rows with the state in registers, then the gated norm.
#include "kernels/cuda/gdn_cell.cuh"

namespace conclave::kernels::cuda::gdn {
namespace {

constexpr int kRowsAhead = 8;    // staged in shared memory
constexpr int kWarpColumns = 8;  // of a state
constexpr int kNormWarps = 8;    // of a block of the last kernel

// What the recurrence needs of one row.
template <int kColumns>
struct Staged {
  alignas(16) float key[kHeadDim];
  alignas(16) float query[kHeadDim];
  alignas(16) float value[kColumns];
  alignas(16) float gates[4];
};

// What one thread copies of every second, fourth, ... row: 128 threads copy
// the 16-byte pieces of a row, in the order of Staged.
template <int kColumns>
struct Stager {
  const float* from = nullptr;  // of row 0; nullptr: nothing
  size_t stride = 0;            // of rows, in floats
  int to = 0;                   // float of Staged

  __device__ __forceinline__ void Find(const Task& task, int head, int part) {
    constexpr int kPieces = kHeadDim / 4;
    const int piece = threadIdx.x % 128;
    const int key_head = task.KeyHead(head);
    to = piece * 4;
    stride = task.Channels();
    if (piece < kPieces) {
      from = task.mixed + task.KeyAt(key_head) + to;
    } else if (piece < 2 * kPieces) {
      from = task.mixed + task.QueryAt(key_head) + to - kHeadDim;
    } else if (piece < 2 * kPieces + kColumns / 4) {
      from =
          task.mixed + task.ValueAt(head) + part * kColumns + to - 2 * kHeadDim;
    } else if (piece == 2 * kPieces + kColumns / 4) {
      from = reinterpret_cast<const float*>(task.gates + head);
      stride = static_cast<size_t>(task.value_heads) * 4;
    }
  }

  // Rows [begin, begin + kRowsAhead) that are before `end`.
  __device__ __forceinline__ void Begin(Staged<kColumns>* rows,
                                        int begin,
                                        int end) const {
    const int step = blockDim.x / 128;
    if (from != nullptr) {
      for (int i = threadIdx.x / 128; i < kRowsAhead && begin + i < end;
           i += step) {
        const auto at =
            static_cast<unsigned>(__cvta_generic_to_shared(rows[i].key + to));
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at),
                     "l"(from + (begin + i) * stride)
                     : "memory");
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  }
};

// What a lane needs of it: its group's keys, its column.
struct LaneRow {
  Quad k[2], q[2];
  float v;
  float4 gates;

  template <int kColumns>
  __device__ __forceinline__ LaneRow(const Staged<kColumns>& row,
                                     int group,
                                     int column) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = KeyOf(group, half * 4);
      k[half] = *reinterpret_cast<const Quad*>(row.key + key);
      q[half] = *reinterpret_cast<const Quad*>(row.query + key);
    }
    v = row.value[column];
    gates = *reinterpret_cast<const float4*>(row.gates);
  }
};

__device__ __forceinline__ void WaitForStaged() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncthreads();
}

// A warp's 8 columns of a head's state. Lane 2 g + c holds the keys of group g
// and the columns 4 c on, the j-th of them at j ^ turn: with the turn made of
// the group's two low bits, sums over groups need no selection.
struct WarpState {
  Quad s[kGroupKeys];
  int group, turn;
  int offset;  // of this lane's four columns in the state's row

  __device__ __forceinline__ explicit WarpState(int first_column) {
    const int lane = threadIdx.x % 32;
    group = lane / 2;
    turn = (group & 1) * 2 + (group >> 1 & 1);
    offset = first_column + lane % 2 * 4;
  }

  // Between the order of the columns and the lane's.
  __device__ __forceinline__ Quad Turned(const Quad& v) const {
    const bool one = turn & 1;
    const bool two = turn & 2;
    const Quad w{one ? v.x[1] : v.x[0],
                 one ? v.x[0] : v.x[1],
                 one ? v.x[3] : v.x[2],
                 one ? v.x[2] : v.x[3]};
    return {two ? w.x[2] : w.x[0],
            two ? w.x[3] : w.x[1],
            two ? w.x[0] : w.x[2],
            two ? w.x[1] : w.x[3]};
  }
  // Of bf16 a warp takes half a sector and the next warp the other half: no
  // more bytes than of float32, and once in all rows of a step.
  template <typename T>
  __device__ __forceinline__ void Read(const T* state) {
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
      s[i] = Turned(
          Numbers(LoadState(state + KeyOf(group, i) * kHeadDim + offset)));
    }
  }
  template <typename T>
  __device__ __forceinline__ void Write(T* state) const {
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
      StoreState(state + KeyOf(group, i) * kHeadDim + offset, Turned(s[i]));
    }
  }

  // Sum over the groups for the column offset + turn, the same in all lanes
  // that have it.
  static __device__ __forceinline__ float Sum(const Quad& v) {
    const auto from = [](float x, int mask) {
      return __shfl_xor_sync(kWholeWarp, x, mask);
    };
    const float a = __fadd_rn(v.x[0], from(v.x[2], 2));
    const float b = __fadd_rn(v.x[1], from(v.x[3], 2));
    float sum = __fadd_rn(a, from(b, 4));
    sum = __fadd_rn(sum, from(sum, 8));
    return __fadd_rn(sum, from(sum, 16));
  }

  // One row; returns its S^T q for the column offset + turn.
  __device__ __forceinline__ float Advance(const LaneRow& row) {
    Quad p, o;
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p.x[j] = __fmaf_rn(row.k[i / 4].x[i % 4], s[i].x[j], p.x[j]);
      }
    }
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        o.x[j] = __fmaf_rn(row.q[i / 4].x[i % 4], s[i].x[j], o.x[j]);
      }
    }
    Quad d;
    d.x[0] = Delta(row.gates.y, row.gates.x, row.v, Sum(p));
    d.x[1] = __shfl_xor_sync(kWholeWarp, d.x[0], 4);
    d.x[2] = __shfl_xor_sync(kWholeWarp, d.x[0], 2);
    d.x[3] = __shfl_xor_sync(kWholeWarp, d.x[0], 6);
    const float out = Out(row.gates.x, Sum(o), row.gates.z, d.x[0]);
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i].x[j] = Next(s[i].x[j], row.gates.x, row.k[i / 4].x[i % 4], d.x[j]);
      }
    }
    return out;
  }
};

// A block runs kHeadDim / kSplit value columns of one head over the rows of
// one sequence. A warp's columns need no other warp.
template <int kSplit, typename T>
__global__ void __launch_bounds__(kHeadDim / kSplit / kWarpColumns * 32, kSplit)
    RunHead(const __grid_constant__ Task task) {
  constexpr int kColumns = kHeadDim / kSplit;
  __shared__ Staged<kColumns> staged[2][kRowsAhead];
  const int head = blockIdx.y;
  const int sequence = blockIdx.z;
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int begin = __ldcg(task.step.row_begin + sequence);
  const int end = __ldcg(task.step.row_begin + sequence + 1);
  const int slot_in = __ldcg(task.step.slot_in + sequence);
  Stager<kColumns> stager;
  stager.Find(task, head, blockIdx.x);
  stager.Begin(staged[0], begin, end);
  const int block_column = threadIdx.x / 32 * kWarpColumns;
  WarpState state(blockIdx.x * kColumns + block_column);
  if (slot_in >= 0) state.Read(task.StateOf<T>(slot_in, head));
  const int column = state.offset + state.turn;
  const int value = column - blockIdx.x * kColumns;
  float* to = task.mixed + task.ValueAt(head) + column;

  int buffer = 0;
  for (int base = begin; base < end; base += kRowsAhead, buffer ^= 1) {
    WaitForStaged();
    stager.Begin(staged[buffer ^ 1], base + kRowsAhead, end);
    const int rows = min(kRowsAhead, end - base);
    LaneRow row(staged[buffer][0], state.group, value);
#pragma unroll 2
    for (int i = 0; i < rows; ++i) {
      // Read while the row before is worked on; after the last it is not used.
      const LaneRow next(
          staged[buffer][min(i + 1, kRowsAhead - 1)], state.group, value);
      const float out = state.Advance(row);
      // The groups whose two high bits are 0 have each column once.
      if (state.group < 4) {
        to[static_cast<size_t>(base + i) * task.Channels()] = out;
      }
      const int slot_out = __float_as_int(row.gates.w);
      if (slot_out >= 0) state.Write(task.StateOf<T>(slot_out, head));
      row = next;
    }
  }
}

// One warp: the ring of 128 channels after every row that has a slot. A thread
// reads what came before the sequence's first row, then writes, so a slot may
// be read and written.
__device__ __forceinline__ void WriteRings(const Task& task,
                                           int sequence,
                                           int channel) {
  const int lane = threadIdx.x % 32;
  const int begin = __ldcg(task.step.row_begin + sequence);
  const int end = __ldcg(task.step.row_begin + sequence + 1);
  const int slot_in = __ldcg(task.step.slot_in + sequence);
  const int position = __ldcg(task.step.position + begin);
  Quad old[kTaps - 1];
#pragma unroll
  for (int j = 0; j < kTaps - 1 && slot_in >= 0; ++j) {
    old[j] = Load(task.RingRow(slot_in, position - 1 - j) + channel);
  }
  for (int base = begin; base < end; base += 32) {
    const int slot =
        base + lane < end ? __ldcg(task.step.slot_out + base + lane) : -1;
    unsigned left = __ballot_sync(kWholeWarp, slot >= 0);
    for (; left != 0; left &= left - 1) {
      const int at = __ffs(left) - 1;
      const int to = __shfl_sync(kWholeWarp, slot, at);
      const int row = base + at - begin;  // of the sequence
#pragma unroll
      for (int j = 0; j < kTaps; ++j) {
        Quad x;
        if (row >= j) x = Load(task.ProjectedRow(base + at - j) + channel);
#pragma unroll
        for (int k = 0; k < kTaps - 1; ++k) {
          if (j - row == k + 1) x = old[k];
        }
        Store(task.RingRow(to, position + row - j) + channel, x);
      }
    }
  }
}

__device__ __forceinline__ void NormHead(const Task& task, int row, int head) {
  const int lane = threadIdx.x % 32;
  const int at = head * kHeadDim + lane * 4;
  const Quad o = Load(task.mixed + static_cast<size_t>(row) * task.Channels() +
                      task.ValueAt(head) + lane * 4);
  const Quad z = Load(task.ProjectedRow(row) + task.Channels() + at);
  const Quad weight = Load(task.weights.norm + lane * 4);
  const float factor = NormFactor(task, WarpSum(Dot(o, o)));
  Quad y;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    y.x[j] = Gated(o.x[j], factor, weight.x[j], z.x[j]);
  }
  const size_t to = static_cast<size_t>(row) * task.Values() + at;
  if (task.y_bf16) {
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(task.y) + to) =
        Rounded(y);
  } else {
    Store(static_cast<float*>(task.y) + to, y);
  }
}

// Warps: the rings of (sequence, 128 channels), then (row, head).
__global__ void __launch_bounds__(kNormWarps * 32)
    NormAndRings(const __grid_constant__ Task task) {
  LetNextKernelBegin();
  WaitForKernelBefore();
  const int parts = task.Channels() / kHeadDim;
  const int rings = task.step.sequences * parts;
  const int warp = blockIdx.x * kNormWarps + threadIdx.x / 32;
  if (warp < rings) {
    const int lane = threadIdx.x % 32;
    WriteRings(task, warp / parts, warp % parts * kHeadDim + lane * 4);
  } else if (warp - rings < task.step.rows * task.value_heads) {
    NormHead(task,
             (warp - rings) / task.value_heads,
             (warp - rings) % task.value_heads);
  }
}

template <int kSplit>
absl::Status LaunchRun(DeviceQueue* queue, const Task& task) {
  const Grid grid{.blocks = dim3(kSplit, task.value_heads, task.step.sequences),
                  .threads = dim3(kHeadDim / kSplit / kWarpColumns * 32)};
  const auto kernel = task.state.dtype == GdnDType::kBF16
                          ? RunHead<kSplit, __nv_bfloat16>
                          : RunHead<kSplit, float>;
  return cuda::Launch(queue, "the GDN recurrence", kernel, grid, task);
}

}  // namespace

absl::Status RunRows(DeviceQueue* queue, const Task& task) {
  return HalvesFill(*queue, task) ? LaunchRun<2>(queue, task)
                                  : LaunchRun<4>(queue, task);
}

absl::Status NormRows(DeviceQueue* queue, const Task& task) {
  const unsigned warps = task.step.sequences * (task.Channels() / kHeadDim) +
                         task.step.rows * task.value_heads;
  const Grid grid{.blocks = dim3((warps + kNormWarps - 1) / kNormWarps),
                  .threads = dim3(kNormWarps * 32)};
  return cuda::Launch(queue, "the GDN norm", NormAndRings, grid, task);
}

}  // namespace conclave::kernels::cuda::gdn
