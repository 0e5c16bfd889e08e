// SPDX-License-Identifier: Apache-2.0
#include "coordinator/schedule/state_allocator.h"

#include "common/check.h"
#include "common/limits.h"

namespace conclave::schedule {

StateAllocator::StateAllocator(int32_t blocks, int32_t slots)
    : blocks_total_(blocks) {
  // Low numbers are handed out first: their pages are warm.
  for (int32_t i = blocks; i-- > 0;) blocks_.push_back(i);
  for (int32_t i = slots; i-- > 0;) slots_.push_back(i);
}

int32_t StateAllocator::BlocksFor(int64_t tokens) {
  return static_cast<int32_t>((tokens + limits::kKvBlockTokens - 1) /
                              limits::kKvBlockTokens);
}

std::optional<Reservation> StateAllocator::Reserve(int64_t tokens) {
  const auto count = static_cast<size_t>(BlocksFor(tokens));
  if (slots_.empty() || count > blocks_.size()) return std::nullopt;
  Reservation out;
  out.slot = slots_.back();
  slots_.pop_back();
  out.blocks.assign(blocks_.rbegin(),
                    blocks_.rbegin() + static_cast<ptrdiff_t>(count));
  blocks_.resize(blocks_.size() - count);
  return out;
}

void StateAllocator::Release(const Reservation& reservation) {
  CONCLAVE_CHECK_GE(reservation.slot, 0);
  slots_.push_back(reservation.slot);
  blocks_.insert(
      blocks_.end(), reservation.blocks.rbegin(), reservation.blocks.rend());
  CONCLAVE_CHECK_LE(blocks_.size(), static_cast<size_t>(blocks_total_));
}

}  // namespace conclave::schedule
