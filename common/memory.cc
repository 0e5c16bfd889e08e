// SPDX-License-Identifier: Apache-2.0
#include "common/memory.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "common/buffer.h"

namespace conclave {
namespace {

constexpr uint64_t kBufferBytesMax = uint64_t{512} << 20;
constexpr uint64_t kBufferBytesMin = uint64_t{4} << 20;
constexpr int64_t kPieceWords = (1 << 20) / sizeof(uint64_t);
constexpr absl::Duration kReadFor = absl::Milliseconds(200);
constexpr size_t kPassesMin = 3;

uint64_t PageBytes(int name) {
  const long pages = sysconf(name), size = sysconf(_SC_PAGESIZE);
  return pages < 0 || size < 0
             ? 0
             : static_cast<uint64_t>(pages) * static_cast<uint64_t>(size);
}

// "MemAvailable:  123 kB" of /proc/meminfo, in bytes.
uint64_t MemInfo(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string word, unit;
  uint64_t value = 0;
  while (file >> word >> value) {
    std::getline(file, unit);
    if (word == key + ":") return value << 10;
  }
  return 0;
}

// A number of this process's control group; 0 where it has none.
uint64_t GroupBytes(const char* name) {
  std::ifstream file(std::string("/sys/fs/cgroup/") + name);
  uint64_t value = 0;
  return file >> value ? value : 0;
}

uint64_t Sum(const uint64_t* from, int64_t count) {
  uint64_t sums[4] = {};
  for (int64_t i = 0; i + 4 <= count; i += 4) {
    for (int64_t k = 0; k < 4; ++k) sums[k] += from[i + k];
  }
  return sums[0] + sums[1] + sums[2] + sums[3];
}

}  // namespace

std::string Gigabytes(uint64_t bytes) {
  const double gb = static_cast<double>(bytes) / 1e9;
  return absl::StrFormat("%.*f GB", gb < 10 ? 3 : 1, gb);
}

MemoryState MemoryNow() {
  MemoryState state{.total_bytes = PageBytes(_SC_PHYS_PAGES),
                    .free_bytes = MemInfo("MemAvailable")};
  if (state.free_bytes == 0) state.free_bytes = PageBytes(_SC_AVPHYS_PAGES);
  const uint64_t limit = GroupBytes("memory.max");
  if (limit > 0 && limit < state.total_bytes) {
    const uint64_t used = std::min(limit, GroupBytes("memory.current"));
    state.total_bytes = limit;
    state.free_bytes = std::min(state.free_bytes, limit - used);
  }
  return state;
}

double MemoryReadRate(ThreadPool* pool, Clock* clock) {
  const uint64_t size = std::min(kBufferBytesMax, MemoryNow().free_bytes / 4);
  if (size < kBufferBytesMin) return 0;
  Buffer buffer(size);
  auto* words = reinterpret_cast<uint64_t*>(buffer.data());
  const auto count = static_cast<int64_t>(size / sizeof(uint64_t));
  pool->ParallelFor(count, kPieceWords, [&](int64_t begin, int64_t end) {
    std::fill(words + begin, words + end, uint64_t{1});
  });
  std::atomic<uint64_t> sum{0};  // keeps the reads
  std::vector<double> rates;
  const absl::Time until = clock->Now() + kReadFor;
  while (rates.size() < kPassesMin || clock->Now() < until) {
    const absl::Time begin = clock->Now();
    pool->ParallelFor(count, kPieceWords, [&](int64_t from, int64_t to) {
      sum.fetch_add(Sum(words + from, to - from), std::memory_order_relaxed);
    });
    const double seconds = absl::ToDoubleSeconds(clock->Now() - begin);
    rates.push_back(static_cast<double>(size) / std::max(seconds, 1e-9));
  }
  if (sum.load() == 0) return 0;
  std::nth_element(
      rates.begin(), rates.begin() + rates.size() / 2, rates.end());
  return rates[rates.size() / 2];
}

}  // namespace conclave
