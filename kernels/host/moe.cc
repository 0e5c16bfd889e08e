// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/dense_twins.h"
#include "kernels/device_moe.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

// Pairs by expert, then by place; groups of one expert each.
void Sort(const DeviceEntries& e) {
  const int32_t pairs = e.rows * e.per_row;
  std::vector<int32_t> order(static_cast<size_t>(pairs));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return e.expert[a] < e.expert[b];
  });
  int32_t groups = 0;
  for (int32_t p = 0; p < pairs; ++p) {
    const int32_t pair = order[p];
    e.row[p] = pair / e.per_row;
    e.place[pair] = p;
    int32_t* last = e.groups + 4 * (groups - 1);
    if (groups > 0 && last[0] == e.expert[pair] && last[2] < e.group_rows) {
      ++last[2];
      continue;
    }
    const int32_t group[4] = {e.expert[pair], p, 1, 0};
    std::copy_n(group, 4, e.groups + 4 * groups++);
  }
  *e.group_count = groups;
}

void Choose(const float* logits, int32_t planes, const DeviceEntries& e) {
  const int32_t experts = e.experts - 1, top_k = e.per_row - 1;
  for (int32_t r = 0; r < e.rows; ++r) {
    std::vector<float> sums(static_cast<size_t>(e.experts));
    for (int32_t plane = 0; plane < planes; ++plane) {
      const float* from = logits + (int64_t{plane} * e.rows + r) * e.experts;
      for (int32_t i = 0; i < e.experts; ++i) sums[i] += from[i];
    }
    const float gate = sums.back();
    sums.pop_back();
    // Logits that are no numbers still choose experts that exist.
    for (float& x : sums) {
      if (std::isnan(x)) x = -std::numeric_limits<float>::infinity();
    }
    int32_t* expert = e.expert + int64_t{r} * e.per_row;
    float* weight = e.weight + int64_t{r} * e.per_row;
    plain::RouteFromLogits(sums,
                           1,
                           top_k,
                           {expert, static_cast<size_t>(top_k)},
                           {weight, static_cast<size_t>(top_k)});
    expert[top_k] = experts;
    weight[top_k] = 1.0f / (1.0f + std::exp(-gate));
  }
}

}  // namespace

absl::Status DeviceRoute(DeviceQueue* queue,
                         const float* logits,
                         int32_t planes,
                         const DeviceEntries& entries) {
  host::StreamOf(queue)->Do([=] {
    Choose(logits, planes, entries);
    Sort(entries);
  });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
