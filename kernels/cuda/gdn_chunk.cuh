// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/gdn_cell.cuh"
#include "kernels/cuda/tf32.cuh"

// The chunked form of Gated DeltaNet (Yang et al., arXiv 2412.06464). Within a
// chunk that begins with the state S, with G_i the product of the decays up to
// row i of it and b_i its beta:
//   L_ij = b_i G_i / G_j k_i.k_j  (j < i)      T = (I + L)^-1
//   A_ij = G_i / G_j q_i.k_j      (j <= i)
//   d = T (b_i (v_i - G_i S^T k_i))            the deltas of the recurrence
//   o_i = G_i S^T q_i + sum_j A_ij d_j
//   S' = G_n S + sum_j G_n / G_j k_j d_j^T
// T and A need no state: the first kernel makes them for all chunks at once,
// the second goes through a sequence's chunks. Ratios of decays are powers of
// differences of logarithms, never more than 1.
//
// Rows are taken in windows: 64 rows on from the sequence's first in the step.
// A chunk is a window, but ends where a row has a slot. T and A of a window
// with more chunks have zeros between them.
namespace conclave::kernels::cuda::gdn {

constexpr int kWindow = 64;
constexpr int kTile = 8;  // rows, keys or columns of one product
constexpr int kKeyTiles = kHeadDim / kTile;

// Tiles of float32 in shared memory: a row's runs of 8 columns change places,
// so that neither 4 rows in sequence nor every other one of 8 share banks.
__device__ __forceinline__ int Turn(int row) {
  return ((row & 3) ^ (row >> 2 & 1)) * kTile;
}

// This lane's part of the second operand where the summed dimension is a
// row's: its columns 2 t and 2 t + 1 of `run`, which stand for t and t + 4 of
// the product. `tile`: 8 rows, this lane's is g.
template <int kStride>
__device__ __forceinline__ float2 RunPair(const float* tile, int run) {
  const int g = threadIdx.x % 32 / 4;
  const int t = threadIdx.x % 4;
  const int lane_part = g * kStride + ((run % 4 * kTile) ^ Turn(g)) + t * 2;
  return *reinterpret_cast<const float2*>(tile + run / 4 * 32 + lane_part);
}

// Rows of a window with a slot, as bits.
__device__ __forceinline__ uint64_t SlotBits(int low, int high) {
  const uint64_t bits = __ballot_sync(kWholeWarp, high >= 0);
  return bits << 32 | __ballot_sync(kWholeWarp, low >= 0);
}
// Of the chunk that `row` is in.
__device__ __forceinline__ int FirstOfChunk(uint64_t slots, int row) {
  const uint64_t before = slots & ((uint64_t{1} << row) - 1);
  return 64 - __clzll(static_cast<long long>(before));
}
__device__ __forceinline__ int LastOfChunk(uint64_t slots, int row, int rows) {
  const uint64_t rest = slots >> row;
  return rest == 0 ? rows - 1 : row + __ffsll(static_cast<long long>(rest)) - 1;
}

// Writes task.inverse and task.scores; rounds q and k in task.mixed; makes a
// row's gates G_i, b_i, G_n / G_i, slot_out.
absl::Status PrepareChunks(DeviceQueue* queue, const Task& task);
// In RunRows' place, that with it, where the device has the shared memory.
bool CanRunChunks(const DeviceQueue& queue);
absl::Status RunChunks(DeviceQueue* queue, const Task& task);

}  // namespace conclave::kernels::cuda::gdn
