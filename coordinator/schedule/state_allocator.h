// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace conclave::schedule {

// What a sequence owns while it runs: KV blocks for all positions that it may
// reach, and one slot for its GDN and convolution states.
struct Reservation {
  std::vector<int32_t> blocks;
  int32_t slot = -1;
};

// KV blocks and state slots, planned together: a sequence gets both or none,
// so nothing runs out in the middle. Not thread-safe.
class StateAllocator {
 public:
  StateAllocator(int32_t blocks, int32_t slots);

  // Blocks for `tokens` positions.
  static int32_t BlocksFor(int64_t tokens);

  // nullopt when there is not enough left.
  std::optional<Reservation> Reserve(int64_t tokens);
  // `reservation` came from Reserve, once.
  void Release(const Reservation& reservation);

  int32_t blocks_total() const { return blocks_total_; }
  int32_t blocks_free() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t slots_free() const { return static_cast<int32_t>(slots_.size()); }

 private:
  int32_t blocks_total_;
  std::vector<int32_t> blocks_;  // free ones
  std::vector<int32_t> slots_;   // free ones
};

}  // namespace conclave::schedule
