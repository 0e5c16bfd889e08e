// SPDX-License-Identifier: Apache-2.0
// Steps of one row a sequence: all of Gated DeltaNet in one kernel, bound by
// reading and writing the states.
#include "kernels/cuda/gdn_cell.cuh"

namespace conclave::kernels::cuda::gdn {
namespace {

// From so many sequences on a head is one block: heads alone fill any device
// many times, and the convolution of a key head is done for fewer blocks.
constexpr int kManySequences = 256;
// About the heads that begin at once; the others find no kernel before them.
constexpr int kPrefetchedHeads = 256;

// A cluster's barrier in two halves, and stores to its other blocks' shared
// memory. Before sm_90 there are no clusters: a head is one block then.
__device__ __forceinline__ void ClusterArrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void ClusterWait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void StoreInBlock(float* to, int rank, float value) {
#if __CUDA_ARCH__ >= 900
  const auto here = static_cast<unsigned>(__cvta_generic_to_shared(to));
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(there)
      : "r"(here), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(there), "f"(value)
               : "memory");
#endif
}

// A block holds `kColumns` value columns of one head: thread t the keys of
// group t / kQuads and the columns 4 (t % kQuads) on.
template <int kSplit>
struct DecodeBlock {
  static constexpr int kColumns = kHeadDim / kSplit;
  static constexpr int kQuads = kColumns / 4;
  static constexpr int kThreads = kQuads * kGroups;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kColumnWarps = kColumns / 32;

  alignas(16) float mixed[2 * kHeadDim + kColumns];  // q | k | v
  alignas(16) float delta[kColumns];
  alignas(16) float sums[kWarps][2][kColumns];  // S^T k and S^T q
  float decay, beta, kq;
  float squares[kHeadDim / 32];  // of all blocks of the head

  __device__ const float* query() const { return mixed; }
  __device__ const float* key() const { return mixed + kHeadDim; }
  __device__ const float* value() const { return mixed + 2 * kHeadDim; }
};

// Brings the block's part of a state to L2 while the kernel before still runs;
// no value is read.
template <int kSplit, typename T>
__device__ __forceinline__ void Prefetch(const T* state, int part) {
#if __CUDA_ARCH__ >= 900
  constexpr int kColumns = DecodeBlock<kSplit>::kColumns;
  const int key = static_cast<int>(threadIdx.x);
  if (key >= kHeadDim) return;
  const T* from = state + key * kHeadDim + part * kColumns;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from),
               "r"(static_cast<unsigned>(kColumns * sizeof(T))));
#endif
}

// What a lane of the first three warps convolves: four channels of q, of k, of
// the block's part of v.
struct DecodeChannels {
  bool any = false;     // this lane has channels
  bool writes = false;  // and is the one that writes their ring
  int channel = 0;

  template <int kColumns>
  __device__ __forceinline__ void Find(const Task& task, int head, int part) {
    const int warp = threadIdx.x / 32;
    const int at = threadIdx.x % 32 * 4;
    const int key_head = task.KeyHead(head);
    const int group = task.value_heads / task.key_heads;
    const bool first = part == 0 && head % group == 0;
    any = warp < 2 || (warp == 2 && at < kColumns);
    writes = any && (warp == 2 || first);
    if (warp == 0) {
      channel = task.QueryAt(key_head) + at;
    } else if (warp == 1) {
      channel = task.KeyAt(key_head) + at;
    } else if (any) {
      channel = task.ValueAt(head) + part * kColumns + at;
    }
  }

  // Rows that others read at this time are older than the one written into
  // the same slot.
  __device__ __forceinline__ void WriteRing(const Task& task,
                                            int slot_in,
                                            int slot_out,
                                            int position,
                                            const Quad (&before)[kTaps]) const {
    if (!writes || slot_out < 0) return;
#pragma unroll
    for (int j = 0; j < kTaps; ++j) {
      if (j > 0 && slot_in == slot_out) break;
      Store(task.RingRow(slot_out, position - j) + channel, before[j]);
    }
  }
};

template <typename Block>
__device__ __forceinline__ void ReadGates(const Task& task,
                                          int row,
                                          int head,
                                          Block* block) {
  const float* b =
      task.ProjectedRow(row) + task.Channels() + task.Values() + head;
  block->beta = Sigmoid(__ldcg(b));
  block->decay = Decay(__ldcg(b + task.value_heads),
                       __ldcg(task.weights.a_log + head),
                       __ldcg(task.weights.dt_bias + head));
}

// p = S^T k and o = S^T q over this thread's keys, then over its warp's
// groups.
template <int kQuads, typename Four>
__device__ __forceinline__ void WarpSums(const Four (&s)[kGroupKeys],
                                         const float* key,
                                         const float* query,
                                         int group,
                                         Quad* p,
                                         Quad* o) {
#pragma unroll
  for (int half = 0; half < kGroupKeys; half += 4) {
    const Quad k = *reinterpret_cast<const Quad*>(key + KeyOf(group, half));
    const Quad q = *reinterpret_cast<const Quad*>(query + KeyOf(group, half));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Quad row = Numbers(s[half + i]);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        p->x[j] = __fmaf_rn(k.x[i], row.x[j], p->x[j]);
        o->x[j] = __fmaf_rn(q.x[i], row.x[j], o->x[j]);
      }
    }
  }
#pragma unroll
  for (int mask = kQuads; mask < 32; mask *= 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      p->x[j] = __fadd_rn(p->x[j], __shfl_xor_sync(kWholeWarp, p->x[j], mask));
      o->x[j] = __fadd_rn(o->x[j], __shfl_xor_sync(kWholeWarp, o->x[j], mask));
    }
  }
}

// S <- decay S + k d^T for this thread's keys and columns, to `state`.
template <typename T>
__device__ __forceinline__ void WriteState(T* state,
                                           int group,
                                           float decay,
                                           const float* key,
                                           const Quad& d,
                                           const Stored<T> (&s)[kGroupKeys]) {
#pragma unroll
  for (int i = 0; i < kGroupKeys; ++i) {
    const float k = key[KeyOf(group, i)];
    const Quad row = Numbers(s[i]);
    Quad next;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      next.x[j] = Next(row.x[j], decay, k, d.x[j]);
    }
    StoreOnce(state + KeyOf(group, i) * kHeadDim, next);
  }
}

__device__ __forceinline__ void StoreY(const Task& task, size_t at, float y) {
  if (task.y_bf16) {
    static_cast<__nv_bfloat16*>(task.y)[at] = __float2bfloat16_rn(y);
  } else {
    static_cast<float*>(task.y)[at] = y;
  }
}

// A column's sum over the warps.
template <int kWarps, int kColumns>
__device__ __forceinline__ float ColumnSum(
    const float (&sums)[kWarps][2][kColumns], int which, int column) {
  float x[kWarps];
#pragma unroll
  for (int w = 0; w < kWarps; ++w) x[w] = sums[w][which][column];
#pragma unroll
  for (int step = 1; step < kWarps; step *= 2) {
#pragma unroll
    for (int w = 0; w < kWarps; w += 2 * step) {
      x[w] = __fadd_rn(x[w], x[w + step]);
    }
  }
  return x[0];
}

// Of a multiprocessor. Half as many bytes of a thread are on their way where
// states are bf16, and it keeps fewer registers: more blocks make up for it.
template <int kSplit, typename T>
constexpr int kBlocksAtOnce = std::is_same_v<T, float>
                                  ? (kSplit == 1 ? 1 : 3 * kSplit / 2)
                                  : 2 * kSplit;

template <int kSplit, typename T>
__global__ void __launch_bounds__(DecodeBlock<kSplit>::kThreads,
                                  (kBlocksAtOnce<kSplit, T>))
    DecodeHead(const __grid_constant__ Task task) {
  using Block = DecodeBlock<kSplit>;
  __shared__ Block block;
  const int part = kSplit == 1 ? 0 : blockIdx.x;
  const int head = blockIdx.y;
  const int sequence = blockIdx.z;  // and row
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int group = threadIdx.x / Block::kQuads;
  const int first_column =
      part * Block::kColumns + threadIdx.x % Block::kQuads * 4;
  LetNextKernelBegin();
  if (kSplit > 1) ClusterArrive();  // 1: that all blocks run
  DecodeChannels own;
  own.Find<Block::kColumns>(task, head, part);
  Taps taps;
  if (own.any) taps.Read(task, own.channel);
  const int slot_in = __ldcg(task.step.slot_in + sequence);
  const int slot_out = __ldcg(task.step.slot_out + sequence);
  const int position = __ldcg(task.step.position + sequence);
  if (slot_in >= 0 && sequence * task.value_heads + head < kPrefetchedHeads) {
    Prefetch<kSplit>(task.StateOf<T>(slot_in, head), part);
  }
  WaitForKernelBefore();

  const float* projected = task.ProjectedRow(sequence);
  Quad before[kTaps];
  if (own.any) {
    before[0] = Load(projected + own.channel);
#pragma unroll
    for (int j = 1; j < kTaps && slot_in >= 0; ++j) {
      before[j] = Load(task.RingRow(slot_in, position - j) + own.channel);
    }
  }
  Stored<T> s[kGroupKeys];
  if (slot_in >= 0) {
    const T* from = task.StateOf<T>(slot_in, head) + first_column;
#pragma unroll
    for (int i = 0; i < kGroupKeys; ++i) {
      s[i] = LoadState(from + KeyOf(group, i) * kHeadDim);
    }
  }
  if (own.any) {
    own.WriteRing(task, slot_in, slot_out, position, before);
    Quad x = taps.Apply(before);
    if (warp < 2) L2Norm(warp == 0 ? kQueryScale : 1.0f, &x);
    Store(block.mixed + threadIdx.x * 4, x);
  }
  if (warp == 3 && lane == 0) ReadGates(task, sequence, head, &block);
  __syncthreads();

  // The first kColumns threads end as one column each.
  const bool ends = threadIdx.x < Block::kColumns;
  const int column =
      head * kHeadDim + part * Block::kColumns + static_cast<int>(threadIdx.x);
  float z = 0;
  float weight = 0;
  if (ends) {
    z = __ldcg(projected + task.Channels() + column);
    weight = __ldcg(task.weights.norm + column % kHeadDim);
  }
  Quad p, o;
  WarpSums<Block::kQuads>(s, block.key(), block.query(), group, &p, &o);
  if (lane < Block::kQuads) {
    Store(&block.sums[warp][0][lane * 4], p);
    Store(&block.sums[warp][1][lane * 4], o);
  }
  if (warp == Block::kWarps - 1) {
    const float kq =
        WarpSum(Dot(*reinterpret_cast<const Quad*>(block.key() + lane * 4),
                    *reinterpret_cast<const Quad*>(block.query() + lane * 4)));
    if (lane == 0) block.kq = kq;
  }
  __syncthreads();

  const float decay = block.decay;
  float out = 0;
  if (kSplit > 1) ClusterWait();  // 1
  if (ends) {
    const float d = Delta(block.beta,
                          decay,
                          block.value()[threadIdx.x],
                          ColumnSum(block.sums, 0, threadIdx.x));
    block.delta[threadIdx.x] = d;
    out = Out(decay, ColumnSum(block.sums, 1, threadIdx.x), block.kq, d);
    const float sum = WarpSum(__fmul_rn(out, out));
    const int to = part * Block::kColumnWarps + warp;
    if (kSplit == 1) {
      block.squares[to] = sum;
    } else if (lane < kSplit) {
      StoreInBlock(&block.squares[to], lane, sum);
    }
  }
  __syncthreads();
  if (kSplit > 1) ClusterArrive();  // 2: that all squares are there
  if (slot_out >= 0) {
    const Quad d = *reinterpret_cast<const Quad*>(
        block.delta + threadIdx.x % Block::kQuads * 4);
    WriteState(task.StateOf<T>(slot_out, head) + first_column,
               group,
               decay,
               block.key(),
               d,
               s);
  }
  if (kSplit > 1) ClusterWait();  // 2
  if (!ends) return;
  const float* squares = block.squares;
  const float factor = NormFactor(task,
                                  __fadd_rn(__fadd_rn(squares[0], squares[1]),
                                            __fadd_rn(squares[2], squares[3])));
  const float y = Gated(out, factor, weight, z);
  StoreY(task, static_cast<size_t>(sequence) * task.Values() + column, y);
}

template <int kSplit>
absl::Status Launch(DeviceQueue* queue, const Task& task) {
  const Grid grid{.blocks = dim3(kSplit, task.value_heads, task.step.sequences),
                  .threads = dim3(DecodeBlock<kSplit>::kThreads),
                  .cluster = kSplit};
  const auto kernel = task.state.dtype == GdnDType::kBF16
                          ? DecodeHead<kSplit, __nv_bfloat16>
                          : DecodeHead<kSplit, float>;
  return cuda::Launch(
      queue, "the GDN of one row a sequence", kernel, grid, task);
}

}  // namespace

absl::Status Decode(DeviceQueue* queue, const Task& task) {
  int clusters = 0;
  const absl::Status status =
      ToStatus(cudaDeviceGetAttribute(
                   &clusters, cudaDevAttrClusterLaunch, queue->device()),
               "reading an attribute");
  if (!status.ok()) return status;
  if (clusters == 0 || task.step.sequences >= kManySequences) {
    return Launch<1>(queue, task);
  }
  return HalvesFill(*queue, task) ? Launch<2>(queue, task)
                                  : Launch<4>(queue, task);
}

}  // namespace conclave::kernels::cuda::gdn
