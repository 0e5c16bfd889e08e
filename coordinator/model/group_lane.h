// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/rank_thread.h"
#include "kernels/device_group.h"

namespace conclave::model {

// The ranks of a GroupDecoder for one micro-batch at a time: a decoder and a
// thread each, and the group in which they meet. A second lane has the weights
// and states of the first one, which outlives it. Used by one thread, but for
// Abort.
class GroupLane {
 public:
  struct Rank {
    std::unique_ptr<kernels::DeviceQueue> queue;
    std::optional<DeviceWeights> weights;  // of a first lane
    std::string name;
  };
  struct Options {
    DeviceDecoder::Options each;  // without group, rank and name
    GroupForm form = GroupForm::kSymmetric;
    kernels::GroupExchange exchange = kernels::GroupExchange::kPeer;
    absl::Duration deadline;
    int32_t lanes = 1;  // that share the devices
  };
  // `first`: null, or whose weights and states it shares.
  static absl::StatusOr<std::unique_ptr<GroupLane>> Create(
      std::vector<Rank> ranks, const Options& options, const GroupLane* first);
  ~GroupLane();
  GroupLane(const GroupLane&) = delete;
  GroupLane& operator=(const GroupLane&) = delete;

  // One rank's part of a step. Owns what it reads: a rank that never comes back
  // may still run it when the step is over.
  using Follow = std::function<absl::Status(DeviceDecoder&)>;

  // `lead` in this thread for rank 0, `follow` in the others' for theirs. The
  // error is that of the rank that failed, not of those that waited for it;
  // then Reset is due.
  absl::Status Together(const std::function<absl::Status()>& lead,
                        const Follow& follow);
  // Ends the step under way. From any thread.
  void Abort() { group_->Abort(); }
  absl::Status Reset() { return group_->Reset(); }
  // Not OK: a rank never came back.
  const absl::Status& lost() const { return lost_; }
  // Nor is its device lost.
  absl::Status Health() const;

  int32_t ranks() const { return static_cast<int32_t>(ranks_.size()); }
  DeviceDecoder& rank(int32_t rank) const {
    return *ranks_[static_cast<size_t>(rank)];
  }

 private:
  GroupLane() = default;

  absl::Duration deadline_;
  // Freed from the last to the first: threads, then decoders, then the group.
  std::unique_ptr<kernels::DeviceGroup> group_;
  std::vector<std::unique_ptr<DeviceDecoder>> ranks_;
  std::vector<std::unique_ptr<RankThread>> threads_;  // [ranks - 1]
  std::vector<std::string> names_;
  absl::Status lost_;  // a rank that never came back
};

// What the ranks of a group for steps of at most so many rows and sequences
// exchange, of a lane that is alone.
kernels::DeviceGroup::Options ExchangesOf(int32_t ranks,
                                          int32_t hidden,
                                          int32_t vocab,
                                          const DeviceDecoder::Options& each);

// A rank that did not fail but waited for one that did.
bool Waited(const absl::Status& status);

// Of several ends of one step, the error that the others come from; null: all
// are OK.
const absl::Status* CauseOf(std::span<const absl::Status> ends);

}  // namespace conclave::model
