// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace conclave::cli {

// What GPUs of a group have to hold where the cache is on rank 0 alone; bytes,
// by rank.
struct ShareNeeds {
  int32_t units = 0;           // of columns: what an expert is cut into
  uint64_t unit_bytes = 0;     // of one, in all experts of all layers
  std::vector<uint64_t> free;  // of the GPU
  std::vector<uint64_t> rest;  // of that, for all but columns and cache
  uint64_t cache = 0;          // wanted on rank 0
};

// Units of each rank, together all there are, so that as much is left on each
// GPU: rank 0 gets a second one only where its cache leaves as much room as
// the others have. One for each at the least; what fits nowhere is given out
// all the same, and FitOnGpu refuses it. `units` is not below the number of
// ranks.
std::vector<int32_t> SharesByMemory(const ShareNeeds& needs);

// Who has how many columns of an expert, a line; empty where all have the same.
std::string DescribeShares(const std::vector<std::string>& gpus,
                           const std::vector<int64_t>& columns);

}  // namespace conclave::cli
