// SPDX-License-Identifier: Apache-2.0
// Steps with more rows of a sequence, first kernel: the convolution and all
// else that needs no state of a head.
#include "kernels/cuda/gdn_cell.cuh"

namespace conclave::kernels::cuda::gdn {
namespace {

constexpr int kWarps = 4;       // of a block
constexpr int kRowsOfWarp = 8;  // the taps are read once for them

// Where a row lies in its sequence.
struct RowPlace {
  int first = 0;  // row of the sequence in this step
  int position = 0;
  int slot_in = -1;

  __device__ __forceinline__ void Read(const DeviceStep& step, int row) {
    const int sequence = __ldcg(step.sequence_of + row);
    position = __ldcg(step.position + row);
    first = __ldcg(step.row_begin + sequence);
    slot_in = __ldcg(step.slot_in + sequence);
  }
  __device__ __forceinline__ RowPlace Of(int lane) const {
    RowPlace out;
    out.first = __shfl_sync(kWholeWarp, first, lane);
    out.position = __shfl_sync(kWholeWarp, position, lane);
    out.slot_in = __shfl_sync(kWholeWarp, slot_in, lane);
    return out;
  }
};

// Pre-convolution values `back` rows before `row`.
__device__ __forceinline__ Quad Before(
    const Task& task, const RowPlace& place, int row, int back, int channel) {
  if (row - back >= place.first) {
    return Load(task.ProjectedRow(row - back) + channel);
  }
  if (place.slot_in < 0) return Quad();
  return Load(task.RingRow(place.slot_in, place.position - back) + channel);
}

// One warp: rows [begin, end) of kParts heads whose first channels are
// `channels`; this lane's four channels after the convolution go to
// on_row(row, values).
template <int kParts, typename OnRow>
__device__ __forceinline__ void Convolve(const Task& task,
                                         int begin,
                                         int end,
                                         const int (&channels)[kParts],
                                         const OnRow& on_row) {
  const int lane = threadIdx.x % 32;
  int channel[kParts];
  Taps taps[kParts];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    channel[i] = channels[i] + lane * 4;
    taps[i].Read(task, channel[i]);
  }
  WaitForKernelBefore();
  RowPlace places;
  if (begin + lane < end) places.Read(task.step, begin + lane);
  Quad before[kParts][kTaps];
  Quad next[kParts];
#pragma unroll
  for (int i = 0; i < kParts; ++i) {
    next[i] = Load(task.ProjectedRow(begin) + channel[i]);
  }
  for (int row = begin; row < end; ++row) {
    const RowPlace place = places.Of(row - begin);
    const bool anew = row == begin || row == place.first;
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
#pragma unroll
      for (int j = kTaps - 1; j > 0; --j) {
        before[i][j] =
            anew ? Before(task, place, row, j, channel[i]) : before[i][j - 1];
      }
      before[i][0] = next[i];
      if (row + 1 < end) {
        next[i] = Load(task.ProjectedRow(row + 1) + channel[i]);
      }
    }
    Quad x[kParts];
#pragma unroll
    for (int i = 0; i < kParts; ++i) x[i] = taps[i].Apply(before[i]);
    on_row(row, x);
  }
}

__device__ __forceinline__ void QueryAndKey(const Task& task,
                                            int begin,
                                            int end,
                                            int key_head) {
  const int lane = threadIdx.x % 32;
  const int group = task.value_heads / task.key_heads;
  const int channels[2] = {task.QueryAt(key_head), task.KeyAt(key_head)};
  Convolve<2>(task, begin, end, channels, [&](int row, Quad(&x)[2]) {
    L2Norm(kQueryScale, &x[0]);
    L2Norm(1.0f, &x[1]);
    const float kq = WarpSum(Dot(x[1], x[0]));
    float* to = task.mixed + static_cast<size_t>(row) * task.Channels();
    Store(to + channels[0] + lane * 4, x[0]);
    Store(to + channels[1] + lane * 4, x[1]);
    float4* gates = task.gates + static_cast<size_t>(row) * task.value_heads;
    for (int i = lane; i < group; i += 32) gates[key_head * group + i].z = kq;
  });
}

__device__ __forceinline__ void ValueAndGates(const Task& task,
                                              int begin,
                                              int end,
                                              int head) {
  const int lane = threadIdx.x % 32;
  const int channels[1] = {task.ValueAt(head)};
  Convolve<1>(task, begin, end, channels, [&](int row, Quad(&x)[1]) {
    Store(task.mixed + static_cast<size_t>(row) * task.Channels() +
              channels[0] + lane * 4,
          x[0]);
  });
  const int row = begin + lane;
  if (row >= end) return;
  const float* b =
      task.ProjectedRow(row) + task.Channels() + task.Values() + head;
  float4* gates =
      task.gates + static_cast<size_t>(row) * task.value_heads + head;
  gates->x = Decay(__ldcg(b + task.value_heads),
                   __ldcg(task.weights.a_log + head),
                   __ldcg(task.weights.dt_bias + head));
  gates->y = Sigmoid(__ldcg(b));
  gates->w = __int_as_float(__ldcg(task.step.slot_out + row));
}

// Blocks x: kRowsOfWarp rows; warps over y: key heads, then value heads.
__global__ void __launch_bounds__(kWarps * 32)
    ConvolveHeads(const __grid_constant__ Task task) {
  LetNextKernelBegin();
  const int begin = blockIdx.x * kRowsOfWarp;
  const int end = min(begin + kRowsOfWarp, task.step.rows);
  const int head = blockIdx.y * kWarps + threadIdx.x / 32;
  if (head < task.key_heads) {
    QueryAndKey(task, begin, end, head);
  } else if (head < task.key_heads + task.value_heads) {
    ValueAndGates(task, begin, end, head - task.key_heads);
  }
}

}  // namespace

absl::Status ConvolveRows(DeviceQueue* queue, const Task& task) {
  const unsigned heads = task.key_heads + task.value_heads;
  const Grid grid{
      .blocks = dim3((task.step.rows + kRowsOfWarp - 1) / kRowsOfWarp,
                     (heads + kWarps - 1) / kWarps),
      .threads = dim3(kWarps * 32)};
  return cuda::Launch(queue, "the GDN convolution", ConvolveHeads, grid, task);
}

}  // namespace conclave::kernels::cuda::gdn
