// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/experts/linked_experts.h"
#include "coordinator/model/decoder.h"
#include "coordinator/model/device_memory.h"
#include "coordinator/model/device_weights.h"
#include "kernels/device_attention.h"
#include "kernels/device_gdn.h"
#include "kernels/device_group.h"
#include "kernels/device_queue.h"

namespace conclave::model {

// The model on one GPU, its routed experts too, but for those layers whose
// experts are elsewhere. A step in which every sequence has one row is recorded
// once per size and then replayed; others, and all where rows of some experts
// travel as frames, are launched kernel by kernel. Rounding points, unless
// `exact`: what products read is rounded to bf16 (the router: to twice as many
// bits), keys, values and probabilities as kernels/device_attention.h says,
// long steps and states of GDN as kernels/device_gdn.h; the rest is float32. A
// step in two micro-batches computes with the forms that their rows call for.
// Errors of the device name it; those that lose it are Internal, and Health
// tells of them from then on. Errors of experts elsewhere come as they are.
class DeviceDecoder final : public Decoder {
 public:
  struct Options {
    StateSizes sizes;
    int32_t rows_max = 0;                             // of a step
    int32_t sequences_max = 0;                        // of a step
    bool exact = false;                               // everything in float32
    kernels::KvDType kv = kernels::KvDType::kBF16;    // kF32 where exact
    kernels::GdnDType gdn = kernels::GdnDType::kF32;  // of states
    // Who holds the routed experts that the weights lack, outliving the
    // decoder; null where they lack none.
    experts::Experts* experts = nullptr;
    bool record = true;                     // not with experts elsewhere
    uint64_t logit_bytes = kLogitBytes;     // of a prompt, at a time
    MicroBatchSettings micro_batches = {};  // with experts elsewhere
    // Instead of them: routed experts whose rows travel from device to device.
    experts::LinkedExperts* linked = nullptr;
    // Of one rank of a group, which outlives the decoder: the weights are that
    // rank's. Its steps need those of the other ranks.
    kernels::DeviceGroup* group = nullptr;
    int32_t rank = 0;
    GroupForm form = GroupForm::kSymmetric;
    std::vector<std::string> rank_names = {};  // [ranks], in errors
    std::string name = "the GPU";              // in errors
  };
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Create(
      std::unique_ptr<kernels::DeviceQueue> queue,
      DeviceWeights weights,
      const Options& options);
  // A second lane of `first`, which outlives it: with the same weights and
  // states, arrays and a queue of its own. Steps of both may be under way at
  // once where they have no sequence in common.
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> CreateLane(
      std::unique_ptr<kernels::DeviceQueue> queue,
      const DeviceDecoder& first,
      const Options& options);
  ~DeviceDecoder() override;

  absl::StatusOr<StepOutput> Run(const kernels::StepBatch& batch,
                                 std::span<const int32_t> tokens,
                                 std::span<const int32_t> logit_rows,
                                 Probe* probe) override;

  absl::StatusOr<std::unique_ptr<StepSampler>> MakeSampler(
      int32_t vocab_used) override;
  // One that counts tokens with `first`, a sampler of the lane whose states
  // these are.
  absl::StatusOr<std::unique_ptr<StepSampler>> MakeSampler(
      const StepSampler& first);
  absl::Status Health() const override;

  // A rank's part of a step whose logits go to rank 0, of the rows that rank 0
  // wants; recorded: as rank 0's, see IsRecorded. DeadlineExceeded names the
  // rank that was waited for in vain; Aborted: another rank's step failed.
  absl::Status Follow(const kernels::StepBatch& batch,
                      std::span<const int32_t> tokens,
                      std::span<const int32_t> logit_rows,
                      bool recorded);
  static bool IsRecorded(const kernels::StepBatch& batch,
                         std::span<const int32_t> logit_rows,
                         const Probe* probe);
  // What Run and RunGreedy refuse before they begin.
  absl::Status Check(const kernels::StepBatch& batch,
                     std::span<const int32_t> tokens,
                     std::span<const int32_t> logit_rows) const;
  absl::Status CheckOneRowEach(const kernels::StepBatch& batch,
                               std::span<const int32_t> tokens) const;

  // A step of one row per sequence; next[i] is the likeliest token after
  // sequence i, -1 where the logits are not finite.
  absl::Status RunGreedy(const kernels::StepBatch& batch,
                         std::span<const int32_t> tokens,
                         std::span<int32_t> next);

  // Parts of a step, for measuring.
  enum Block : uint32_t {
    kNorms = 1,
    kProjections = 2,  // into and out of the mixers
    kGdn = 4,
    kAttention = 8,
    kRouter = 16,   // product, choice and sorting
    kExperts = 32,  // routed and shared
    kHead = 64,
    kSample = 128,
    kExchange = 256,  // of a group; else a rank goes on with its part alone
    kAll = 511,
  };
  // Device time of one such step, seconds, as the mean of `repeats` replays;
  // only of the blocks in `blocks`, on whatever the others left.
  absl::StatusOr<double> Time(const kernels::StepBatch& batch,
                              std::span<const int32_t> tokens,
                              uint32_t blocks,
                              int32_t repeats);
  // Bytes of weights that a step reads in a block, experts' all.
  uint64_t WeightBytesOf(Block block) const;
  // Fills the KV cache with made-up numbers.
  absl::Status MakeUpCache();

  uint64_t dense_bytes() const override;
  uint64_t expert_bytes() const override;
  StateBytes state_bytes() const override;
  std::span<const float> GdnState(int32_t layer, int32_t slot) const override;
  std::span<const float> ConvState(int32_t layer, int32_t slot) const override;

  kernels::DeviceQueue* queue();

  struct Impl;  // for the files of this folder

 private:
  explicit DeviceDecoder(std::unique_ptr<Impl> impl);
  static absl::StatusOr<std::unique_ptr<DeviceDecoder>> Make(
      std::unique_ptr<Impl> impl, const Impl* first);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::model
