// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/clock.h"
#include "common/thread_pool.h"

namespace conclave {

struct MemoryState {
  uint64_t total_bytes = 0;
  uint64_t free_bytes = 0;  // that a program can have: caches count as free
};

// "236.1 GB"; below ten with three digits, where a small model's differ.
std::string Gigabytes(uint64_t bytes);

// Of the machine, or of the control group where that has less. Zeros where the
// system does not tell.
MemoryState MemoryNow();

// Bytes per second that the pool's threads read together from memory that no
// cache holds; takes about a quarter of a second and at most a quarter of the
// free memory. 0 where there is too little.
double MemoryReadRate(ThreadPool* pool, Clock* clock);

}  // namespace conclave
