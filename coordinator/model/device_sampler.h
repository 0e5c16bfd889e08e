// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/device_step_arrays.h"
#include "coordinator/model/step_sampler.h"
#include "kernels/device_queue.h"

namespace conclave::model {

// Recorded steps with the sampling kernels behind the head.
class DeviceSampler final : public StepSampler {
 public:
  // The decoder outlives this.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Create(
      DeviceDecoder::Impl* decoder, int32_t vocab_used);
  // With the counts of `first`, whose decoder's states the decoder shares.
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> CreateLane(
      DeviceDecoder::Impl* decoder, const DeviceSampler& first);
  ~DeviceSampler() override;

  // Destroys what was recorded.
  void Forget() { graphs_.clear(); }

  absl::Status SetCounts(int32_t slot,
                         std::span<const int32_t> counts) override;
  absl::Status Run(const kernels::StepBatch& batch,
                   std::span<const int32_t> tokens,
                   std::span<const kernels::DeviceSampling> how,
                   std::span<int32_t> next) override;

 private:
  using Sizes = DeviceStepArrays::Sizes;
  // [state slots + 1, vocab_used], made when the first penalty comes. The last
  // row is that of sequences without one. Of all lanes.
  struct Counts {
    std::mutex mutex;  // of making it
    kernels::DeviceBuffer buffer;
  };
  DeviceSampler(DeviceDecoder::Impl* decoder,
                int32_t vocab_used,
                std::shared_ptr<Counts> counts);
  static absl::StatusOr<std::unique_ptr<DeviceSampler>> Make(
      DeviceDecoder::Impl* decoder,
      int32_t vocab_used,
      std::shared_ptr<Counts> counts);
  int32_t* rows() const { return counts_->buffer.as<int32_t>(); }

  absl::Status RunStep(const kernels::StepBatch& batch,
                       std::span<const int32_t> tokens,
                       std::span<const kernels::DeviceSampling> how,
                       std::span<int32_t> next);
  absl::Status AllocateCounts();
  absl::Status Pass(const Sizes& sizes, bool counted);
  absl::Status Launch(const Sizes& sizes, bool counted);

  DeviceDecoder::Impl& d_;
  const int32_t vocab_used_;
  kernels::DeviceBuffer how_;  // [rows of the largest recorded step]
  const std::shared_ptr<Counts> counts_;
  std::vector<kernels::DeviceSampling> host_;
  std::map<std::pair<Sizes, bool>, kernels::DeviceGraph> graphs_;
  int64_t recorded_in_ = 0;  // generation of the group
};

}  // namespace conclave::model
