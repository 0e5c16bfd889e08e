// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <vector>

#include "common/status_macros.h"
#include "kernels/device_held_pairs.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

struct Pair {
  int32_t number = 0;
  int32_t row = 0;
  int32_t choice = 0;  // position among those of all rows
};

void Sort(const DeviceChoices& c, const DeviceHeld& held, const HeldPairs& to) {
  const DeviceEntries& e = to.entries;
  std::vector<Pair> here;
  for (int32_t i = 0; i < c.rows * c.per_row; ++i) {
    const int32_t expert = c.expert[i];
    const bool exists = expert >= 0 && expert < held.experts;
    const int32_t number = exists ? held.number[expert] : -1;
    e.place[i] = -1;
    if (number >= 0) here.push_back({number, i / c.per_row, i});
  }
  std::stable_sort(here.begin(), here.end(), [](const Pair& a, const Pair& b) {
    return a.number < b.number;
  });
  int32_t groups = 0;
  std::vector<std::vector<int32_t>> of_row(static_cast<size_t>(c.rows));
  for (size_t p = 0; p < here.size(); ++p) {
    const auto at = static_cast<int32_t>(p);
    e.row[p] = here[p].row;
    e.place[here[p].choice] = at;
    of_row[static_cast<size_t>(here[p].row)].push_back(at);
    int32_t* last = e.groups + 4 * int64_t{groups - 1};
    if (groups > 0 && last[0] == here[p].number && last[2] < e.group_rows) {
      ++last[2];
      continue;
    }
    const std::array<int32_t, 4> group = {here[p].number, at, 1, 0};
    std::copy(group.begin(), group.end(), e.groups + 4 * int64_t{groups++});
  }
  *e.group_count = groups;
  int32_t place = 0;
  for (int32_t r = 0; r < c.rows; ++r) {
    to.first[r] = place;
    for (const int32_t p : of_row[static_cast<size_t>(r)]) {
      to.pair[place] = p;
      to.weight[place++] = c.weight[here[static_cast<size_t>(p)].choice];
    }
  }
  to.first[c.rows] = place;
}

}  // namespace

absl::Status DeviceHeldPairs(DeviceQueue* queue,
                             const DeviceChoices& choices,
                             const DeviceHeld& held,
                             const HeldPairs& pairs) {
  RETURN_IF_ERROR(CheckHeld(held));
  host::StreamOf(queue)->Do([=] { Sort(choices, held, pairs); });
  return absl::OkStatus();
}

}  // namespace conclave::kernels
