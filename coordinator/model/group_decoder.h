// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/device_weights.h"
#include "kernels/device_group.h"

namespace conclave::model {

// The model on several GPUs of one host (docs/multi-gpu.md): a DeviceDecoder
// and a thread per rank; the caller's thread is rank 0's, where logits are and
// tokens are chosen. Bits depend on the number of ranks. Two micro-batches of a
// step are computed at once, in streams of their own: while one is in its
// mixers, which are rank 0's alone in the lone form, the other has the experts
// of all ranks.
//
// Errors name the rank. A rank that stalls or fails in a step ends that step,
// Unavailable: the others leave their waits within the deadline, and the next
// step may begin. Health tells of a GPU that is lost or never came back.
class GroupDecoder final : public Decoder {
 public:
  struct Member {
    std::unique_ptr<kernels::DeviceQueue> queue;
    DeviceWeights weights;
    std::string name;  // "GPU 1 (NVIDIA H200)"
  };
  struct Options {
    DeviceDecoder::Options each;  // without group, rank and name
    GroupForm form = GroupForm::kSymmetric;
    kernels::GroupExchange exchange = kernels::GroupExchange::kPeer;
    absl::Duration deadline = absl::Seconds(5);  // of a wait for another rank
    // With a count of 0 or 2, a second lane has arrays for half of a step's
    // rows and sequences.
    MicroBatchSettings micro_batches = {};
  };
  // Of a second lane, where the first one has that room.
  static DeviceDecoder::Options HalfOf(const DeviceDecoder::Options& each);

  // Members in rank order, whose weights were cut for that form.
  static absl::StatusOr<std::unique_ptr<GroupDecoder>> Create(
      std::vector<Member> members, const Options& options);
  ~GroupDecoder() override;

  absl::StatusOr<StepOutput> Run(const kernels::StepBatch& batch,
                                 std::span<const int32_t> tokens,
                                 std::span<const int32_t> logit_rows,
                                 Probe* probe) override;
  absl::StatusOr<std::unique_ptr<StepSampler>> MakeSampler(
      int32_t vocab_used) override;
  absl::Status Health() const override;

  // As DeviceDecoder has them; times are rank 0's, of one micro-batch.
  absl::Status RunGreedy(const kernels::StepBatch& batch,
                         std::span<const int32_t> tokens,
                         std::span<int32_t> next);
  absl::StatusOr<double> Time(const kernels::StepBatch& batch,
                              std::span<const int32_t> tokens,
                              uint32_t blocks,
                              int32_t repeats);
  absl::Status MakeUpCache();

  // Of all ranks together.
  uint64_t dense_bytes() const override;
  uint64_t expert_bytes() const override;
  StateBytes state_bytes() const override;
  std::span<const float> GdnState(int32_t layer, int32_t slot) const override;
  std::span<const float> ConvState(int32_t layer, int32_t slot) const override;

  // Of steps so far, those of two micro-batches.
  int64_t steps_cut() const;
  int32_t ranks() const;
  const DeviceDecoder& rank(int32_t rank) const;
  kernels::DeviceQueue* queue(int32_t rank);

 private:
  struct Impl;
  class Sampler;
  explicit GroupDecoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::model
