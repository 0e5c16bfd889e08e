// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/device_sampling.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

// Counts: n times generated, or -1 - n where it stands in the prompt too.
void Penalise(const DeviceSampling& s,
              const int32_t* counts,
              std::vector<float>* logits) {
  for (size_t id = 0; id < logits->size(); ++id) {
    const int32_t count = counts[id];
    if (count == 0) continue;
    float& x = (*logits)[id];
    const auto factor = static_cast<float>(s.repetition_penalty);
    x = x > 0 ? x / factor : x * factor;
    const int32_t times = count < 0 ? -1 - count : count;
    if (times > 0) {
      x -= static_cast<float>(s.presence_penalty + s.frequency_penalty * times);
    }
  }
}

// Candidates, best first, with their weights; the largest is 1.
int32_t Draw(const DeviceSampling& s, const std::vector<float>& logits) {
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return logits[a] > logits[b];
  });
  if (s.top_k > 0 && ids.size() > static_cast<size_t>(s.top_k)) {
    ids.resize(static_cast<size_t>(s.top_k));
  }
  const double largest = logits[ids[0]];
  const auto weight = [&](int32_t id) {
    return std::exp((logits[id] - largest) / s.temperature);
  };
  const auto sum = [&] {
    return std::accumulate(
        ids.begin(), ids.end(), 0.0, [&](double total, int32_t id) {
          return total + weight(id);
        });
  };
  if (s.top_p < 1.0) {
    const double enough = s.top_p * sum();
    double kept = 0;
    size_t count = 0;
    while (count < ids.size() && kept < enough) kept += weight(ids[count++]);
    ids.resize(std::max<size_t>(count, 1));
  }
  if (s.min_p > 0) {
    std::erase_if(ids, [&](int32_t id) { return weight(id) < s.min_p; });
  }
  std::sort(ids.begin(), ids.end());
  double left = s.uniform * sum();
  for (const int32_t id : ids) {
    left -= weight(id);
    if (left < 0) return id;
  }
  return ids.back();
}

int32_t Choose(const DeviceSampling& s,
               const int32_t* counts,
               std::vector<float> logits) {
  if (s.presence_penalty != 0 || s.frequency_penalty != 0 ||
      s.repetition_penalty != 1) {
    Penalise(s, counts, &logits);
  }
  for (const float x : logits) {
    if (!std::isfinite(x)) return -1;
  }
  if (s.temperature > 0) return Draw(s, logits);
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
}

}  // namespace

absl::Status DeviceSample(DeviceQueue* queue,
                          const float* logits,
                          int32_t rows,
                          int32_t vocab,
                          int32_t vocab_used,
                          const DeviceSampling* sampling,
                          const int32_t* counts,
                          void*,
                          int32_t* token) {
  host::StreamOf(queue)->Do([=] {
    for (int32_t r = 0; r < rows; ++r) {
      const float* row = logits + int64_t{r} * vocab;
      const int64_t at = int64_t{sampling[r].counts_row} * vocab_used;
      token[r] = Choose(sampling[r],
                        counts == nullptr ? nullptr : counts + at,
                        {row, row + vocab_used});
    }
  });
  return absl::OkStatus();
}

size_t SamplingScratchBytes(int32_t, int32_t) { return 0; }

absl::Status DeviceCount(DeviceQueue* queue,
                         const int32_t* token,
                         const DeviceSampling* sampling,
                         int32_t rows,
                         int32_t vocab_used,
                         int32_t* counts) {
  host::StreamOf(queue)->Do([=] {
    for (int32_t r = 0; r < rows; ++r) {
      if (token[r] < 0 || token[r] >= vocab_used) continue;
      int32_t& count =
          counts[int64_t{sampling[r].counts_row} * vocab_used + token[r]];
      count += count < 0 ? -1 : 1;
    }
  });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
