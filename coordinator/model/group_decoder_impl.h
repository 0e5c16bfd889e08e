// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "coordinator/model/group_decoder.h"
#include "coordinator/model/group_lane.h"
#include "coordinator/model/micro_batches.h"
#include "coordinator/model/rank_thread.h"

// group_decoder.cc has what others call, group_decoder_steps.cc how a step goes
// through the lanes.
namespace conclave::model {

// One micro-batch, or a whole step, and the lane that computes it. Owns its
// numbers: a rank that never comes back may still read them.
struct GroupPart {
  size_t number = 0;  // of the lane
  GroupLane* lane = nullptr;
  std::shared_ptr<const OwnedBatch> own;
  int32_t row_begin = 0;
  std::vector<int32_t> wanted;  // rows of its own whose logits are
};

using GroupLead = std::function<absl::Status(const GroupPart&)>;

struct GroupDecoder::Impl {
  // What this step is computed in. `whole`: in one piece.
  std::vector<GroupPart> Cut(const kernels::StepBatch& batch,
                             std::span<const int32_t> tokens,
                             std::span<const int32_t> wanted,
                             bool whole);
  // Whether the second lane has room for the second half.
  bool FitsHalf(const kernels::StepBatch& batch,
                std::span<const int32_t> tokens) const;
  // All parts at once: `lead` for rank 0, the other ranks follow.
  absl::Status Run(const std::vector<GroupPart>& parts,
                   const GroupLead& lead,
                   const Probe* probe);
  absl::Status RunTwo(const std::vector<GroupPart>& parts,
                      const GroupLead& lead,
                      const Probe* probe);
  absl::Status Ended(std::span<const absl::Status> ends);
  const GroupLane& first() const { return *lanes[0]; }

  absl::Duration deadline;
  std::vector<std::unique_ptr<GroupLane>> lanes;
  std::unique_ptr<RankThread> second;  // leads the second lane
  DeviceDecoder::Options half;         // of the second lane
  std::optional<MicroBatchSteps> micro_batches;
  int64_t steps_cut = 0;
  std::vector<RankCut> cuts;
  checkpoint::ModelConfig whole;  // as to GDN
  absl::Status lost;              // why no further step can run
  std::vector<float> state, logits, hidden;
};

}  // namespace conclave::model
