// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/device_product.h"

namespace conclave::kernels::cuda {

// What a product is for: where its rows come from and what becomes of it.
enum class Use : uint8_t {
  kDense,   // rows as they lie; float32
  kGateUp,  // rows of pairs; silu(gate) * up in the type of x
  kDown,    // pairs as they lie; float32
};

struct ProductArgs {
  MatrixArgs m;
  const void* x;
  bool wide;        // x in the order of hopper.cuh
  const void* low;  // bf16, kDense only
  void* out;
  bool out_bf16;         // kGateUp
  int32_t x_stride;      // elements from row to row
  int32_t out_stride;    // elements
  int32_t rows;          // of x
  int64_t plane_stride;  // kDense: elements
  int32_t expert_first;  // else: experts of this matrix
  int32_t experts;
  const int4* groups;  // else
  const int32_t* group_count;
  bool all_groups;          // there are as many as blocks
  const int32_t* pair_row;  // kGateUp
};

// The rows of one block: of the dense product, or of one expert.
struct RowGroup {
  const uint8_t* data;    // of the expert
  const uint8_t* scales;  // of the expert
  int32_t first;          // row of x and out, or pair
  int32_t count;
};

template <Use U>
__device__ __forceinline__ bool FindRows(const ProductArgs& p,
                                         int index,
                                         int group_rows,
                                         RowGroup* out) {
  if constexpr (U == Use::kDense) {
    out->data = p.m.data;
    out->scales = p.m.scales;
    out->first = index * group_rows;
    out->count = min(group_rows, p.rows - out->first);
    return out->count > 0;
  } else {
    // Both on their way at once: behind the last group there is room.
    const int4 group = __ldcg(p.groups + index);
    if (!p.all_groups && index >= __ldcg(p.group_count)) return false;
    const int expert = group.x - p.expert_first;
    if (expert < 0 || expert >= p.experts) return false;
    out->data = p.m.data + expert * p.m.data_stride;
    out->scales = p.m.scales + expert * p.m.scale_stride;
    out->first = group.y;
    out->count = group.z;
    return true;
  }
}

// Which row of x the i-th of a group is.
template <Use U>
__device__ __forceinline__ int RowOf(const ProductArgs& p,
                                     const RowGroup& group,
                                     int i) {
  const int at = group.first + i;
  if (U != Use::kGateUp) return at;
  return p.rows == 1 ? 0 : p.pair_row[at];
}

__device__ __forceinline__ float SiluTimes(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// Where the rows of R tiles go: places[tile] and on, but for kGateUp.
template <int R>
struct Places {
  int2 of[R];
};
template <int R>
__device__ __forceinline__ Places<R> PlacesAt(const ProductArgs& p, int tile) {
  Places<R> out = {};
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (tile + r < p.m.tiles) out.of[r] = p.m.places[tile + r];
  }
  return out;
}

// sum[R]: what row `row` of tiles `tile` to tile + R - 1 gives for a row of x;
// `at` is where that goes. kGateUp: tiles are gate and up in turn.
template <Use U, int R>
__device__ __forceinline__ void Store(const ProductArgs& p,
                                      int at,
                                      int tile,
                                      int row,
                                      const float (&sum)[R],
                                      const Places<R>& places) {
  const int64_t line = static_cast<int64_t>(at) * p.out_stride;
  if constexpr (U == Use::kGateUp) {
#pragma unroll
    for (int r = 0; r < R; r += 2) {
      if (tile + r >= p.m.tiles) break;
      const int64_t to = line + (tile + r) / 2 * kTileRows + row;
      const float value = SiluTimes(sum[r], sum[r + 1]);
      if (p.out_bf16) {
        static_cast<__nv_bfloat16*>(p.out)[to] = __float2bfloat16(value);
      } else {
        static_cast<float*>(p.out)[to] = value;
      }
    }
  } else {
    // Planes lie one behind the other.
    float* out = static_cast<float*>(p.out) + blockIdx.z * p.plane_stride;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (tile + r >= p.m.tiles) break;
      const int2 place = places.of[r];
      if (row < place.y) out[line + place.x + row] = sum[r];
    }
  }
}

// Implemented once per format (product_*.cu).
template <DeviceFormat F>
struct Products {
  // `groups` of group_rows rows each (8, 16, 32 or kWideRows) at most.
  static absl::Status Run(DeviceQueue* queue,
                          Use use,
                          const ProductArgs& args,
                          bool bf16,
                          int32_t group_rows,
                          int32_t groups,
                          int32_t planes);
};

}  // namespace conclave::kernels::cuda
