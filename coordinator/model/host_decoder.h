// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "coordinator/model/decoder.h"

namespace conclave::model {

// The model in host memory; the routed experts are wherever `experts` has
// them.
class HostDecoder final : public Decoder {
 public:
  struct Options {
    experts::Experts* experts = nullptr;
    kernels::Backend backend = kernels::Backend::kCpu;
    ThreadPool* pool = nullptr;
    StateSizes sizes;
    kernels::Activations activations = kernels::Activations::kF32;
    MicroBatchSettings micro_batches = {};
  };
  // What the options point to outlives this.
  static absl::StatusOr<std::unique_ptr<HostDecoder>> Create(
      const checkpoint::Checkpoint& checkpoint, const Options& options);
  ~HostDecoder() override;

  absl::StatusOr<StepOutput> Run(const kernels::StepBatch& batch,
                                 std::span<const int32_t> tokens,
                                 std::span<const int32_t> logit_rows,
                                 Probe* probe) override;
  absl::StatusOr<std::unique_ptr<StepSampler>> MakeSampler(
      int32_t vocab_used) override;
  absl::Status Health() const override;
  uint64_t dense_bytes() const override;
  uint64_t expert_bytes() const override;
  StateBytes state_bytes() const override;
  std::span<const float> GdnState(int32_t layer, int32_t slot) const override;
  std::span<const float> ConvState(int32_t layer, int32_t slot) const override;

 private:
  struct Impl;
  explicit HostDecoder(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::model
