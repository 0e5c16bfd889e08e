// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/ids.h"

namespace conclave::experts {

// A shard's partial sums of some rows of the step.
struct Partial {
  ShardId shard{};
  std::span<const int32_t> token;  // rows of the step, each at most once
  std::span<const float> sum;      // [token.size(), hidden]
};

// out = 0, then += each partial, in shard order whatever the order given: the
// one place where sums of shards meet, so that local and remote runs agree bit
// for bit. A row missing in a partial and a row of zeros are the same: the sum
// starts at +0 and so never is -0. `out` is [rows, hidden].
void Combine(std::vector<Partial> partials,
             int32_t hidden,
             std::span<float> out);

}  // namespace conclave::experts
