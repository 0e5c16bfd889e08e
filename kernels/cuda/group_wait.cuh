// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/fragments.cuh"
#include "kernels/cuda/group.cuh"

// How kernels of a group wait for other ranks' devices, and how waits end.
namespace conclave::kernels::cuda {

struct PeerWait {
  int32_t rank;
  int32_t number;  // of the exchange, as DeviceGroup::End has it
  GroupWords* words;
  int32_t* ended;  // on this device: not 0: this step's waits have ended
  int64_t deadline_ns;
};

inline RankWords* WordsOf(const DeviceGroup::Impl& group, size_t rank) {
  return group.ranks[rank].words.as<RankWords>();
}

inline PeerWait WaitOf(const DeviceGroup::Impl& group,
                       int32_t rank,
                       int32_t number) {
  return {
      .rank = rank,
      .number = number,
      .words = group.words,
      .ended = &WordsOf(group, static_cast<size_t>(rank))->ended,
      .deadline_ns = absl::ToInt64Nanoseconds(group.options.deadline),
  };
}

__device__ __forceinline__ int64_t NowNs() {
  int64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ int32_t ReadWord(const int32_t* word) {
  return *static_cast<const volatile int32_t*>(word);
}

__device__ __forceinline__ void WriteWord(int32_t* word, int32_t value) {
  *static_cast<volatile int32_t*>(word) = value;
}

// The first to tell is heard; a moment's race of two devices names one of two.
inline __device__ void EndStep(const PeerWait& a, int missed) {
  if (atomicExch(a.ended, 1) != 0) return;
  GroupWords::Rank& own = a.words->ranks[a.rank];
  if (ReadWord(&a.words->abort) != 0) return;
  WriteWord(&own.number, a.number);
  WriteWord(&own.missed, 1 + missed);
  __threadfence_system();
  WriteWord(&a.words->abort, 1);
}

// Whether a wait since `begin` must end. Host memory is far away: many threads
// that read it hold up the device, the other ranks wait longer for it, read
// too, and so on for ever. One of a warp reads it, seldom.
inline __device__ bool MustEnd(const PeerWait& a,
                               int from,
                               int64_t begin,
                               int look) {
  constexpr int kSeldom = 256;  // looks between two at host memory
  if (ReadWord(a.ended) != 0) return true;
  const int64_t now = NowNs();
  if (now - begin > a.deadline_ns) {
    EndStep(a, from);
    return true;
  }
  const int first = __ffs(static_cast<int>(__activemask())) - 1;
  if (look % kSeldom != 0 || threadIdx.x % kLanes != first) return false;
  if (ReadWord(&a.words->abort) == 0) return false;
  WriteWord(a.ended, 1);
  return true;
}

// What this rank computed of the step is to be thrown away.
__device__ __forceinline__ void NotWhole(const PeerWait& a) {
  WriteWord(&a.words->ranks[a.rank].ended, 1);
}

// By one thread, in its rank's stream: the rank came to that exchange.
__device__ __forceinline__ void Came(GroupWords::Rank* own, int32_t number) {
  WriteWord(&own->last, number);
  WriteWord(
      &own->passed,
      static_cast<int32_t>(static_cast<uint32_t>(ReadWord(&own->passed)) + 1u));
}

}  // namespace conclave::kernels::cuda
