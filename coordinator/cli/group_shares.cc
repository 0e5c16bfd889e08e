// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/group_shares.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace conclave::cli {

std::vector<int32_t> SharesByMemory(const ShareNeeds& needs) {
  const size_t ranks = needs.free.size();
  const auto unit = static_cast<int64_t>(needs.unit_bytes);
  std::vector<int32_t> out(ranks, 1);
  std::vector<int64_t> left(ranks);  // below 0: more than there is
  for (size_t r = 0; r < ranks; ++r) {
    left[r] = static_cast<int64_t>(needs.free[r]) -
              static_cast<int64_t>(needs.rest[r]) - unit;
  }
  left[0] -= static_cast<int64_t>(needs.cache);
  for (auto given = static_cast<int32_t>(ranks); given < needs.units; ++given) {
    // Of those that have the same, the last: rank 0 works most.
    const auto most = std::max_element(left.rbegin(), left.rend());
    *most -= unit;
    ++out[static_cast<size_t>(left.rend() - most) - 1];
  }
  return out;
}

std::string DescribeShares(const std::vector<std::string>& gpus,
                           const std::vector<int64_t>& columns) {
  const auto [least, most] =
      std::minmax_element(columns.begin(), columns.end());
  if (columns.empty() || *least == *most) return "";
  const int64_t all =
      std::accumulate(columns.begin(), columns.end(), int64_t{0});
  std::string out = absl::StrCat("of ", all, " columns of each expert:");
  for (size_t r = 0; r < columns.size(); ++r) {
    absl::StrAppend(&out,
                    r == 0 ? " " : ", ",
                    columns[r],
                    " on rank ",
                    r,
                    " (",
                    gpus[r],
                    ")");
  }
  return out + "\n";
}

}  // namespace conclave::cli
