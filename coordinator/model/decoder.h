// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/shard_weights.h"
#include "coordinator/experts/experts.h"
#include "coordinator/experts/linked_experts.h"
#include "coordinator/model/micro_batches.h"
#include "coordinator/model/rank_cut.h"
#include "coordinator/model/step_sampler.h"
#include "kernels/context.h"
#include "kernels/device_attention.h"
#include "kernels/device_gdn.h"
#include "kernels/device_group.h"
#include "kernels/step_batch.h"

namespace conclave::model {

// Sizes of the state pools, chosen by the engine from the memory plan.
struct StateSizes {
  int32_t kv_blocks = 0;    // of limits::kKvBlockTokens positions each
  int32_t state_slots = 0;  // GDN + convolution states
  // Rows of a step; 0: limits::kStepRowsMax. A device allocates its arrays by
  // it.
  int32_t step_rows = 0;
};

// Bytes that one of each costs, all layers together.
struct StateBytes {
  int64_t per_kv_block = 0;
  int64_t per_state_slot = 0;
};
StateBytes StateBytesOf(const checkpoint::ModelConfig& config);

// Of the model on a GPU.
struct DevicePlace {
  int32_t gpu = 0;                                // or kernels::kHostDevice
  kernels::KvDType kv = kernels::KvDType::kBF16;  // kF32 where all is float32
  kernels::GdnDType gdn = kernels::GdnDType::kF32;
  checkpoint::LoadProgressFn progress = nullptr;  // of the weights
  // Several: they compute the model together, in rank order; else `gpu` does.
  std::vector<int32_t> gpus = {};
  GroupForm form = GroupForm::kSymmetric;
  std::vector<int32_t> shares = {};  // of those, as RankConfig has them
  kernels::GroupExchange exchange = kernels::GroupExchange::kPeer;
  absl::Duration group_deadline = absl::Seconds(5);  // of a wait for a rank
  // Instead of `experts`, on one GPU: rows travel from device to device.
  experts::LinkedExperts* linked = nullptr;
  // Layers whose routed experts are on the GPU too; empty: none where there
  // are `experts` or `linked` ones to hold them, else all.
  std::vector<bool> routed_here = {};
};

// What one step gives back; views into the decoder's own memory, valid until
// the next Run.
struct StepOutput {
  std::span<const float> logits;  // [wanted rows, vocab], in the order asked
  std::span<const float> hidden;  // [rows, hidden] after the final norm
};

// Sees the residual stream after the embedding (layer -1) and after each
// layer, and the routing of each layer; for parity tests. May be null.
class Probe {
 public:
  virtual ~Probe() = default;
  virtual void Hidden(int32_t layer, std::span<const float> x) = 0;
  virtual void Routed(int32_t layer, const experts::Routing& routing) = 0;
};

// The language model: embedding, layers, final norm, head. Owns dense weights
// and the pools of KV blocks and GDN states. Engine thread only. Three of
// them: in host memory, block by block (decoder.cc), on a GPU
// (device_decoder.h), and on several (group_decoder.h).
class Decoder {
 public:
  // The one that `backend` calls for. On a GPU, activations are float32 with
  // kF32, else bf16; `pool` is not used; the decoder holds routed experts of
  // its own, as `place` says, and without `experts` all. `micro_batches`: of
  // steps with `experts`. Unavailable: no GPU.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(
      const checkpoint::Checkpoint& checkpoint,
      experts::Experts* experts,
      kernels::Backend backend,
      ThreadPool* pool,
      StateSizes sizes,
      kernels::Activations activations = kernels::Activations::kF32,
      const DevicePlace& place = {},
      const MicroBatchSettings& micro_batches = {});
  virtual ~Decoder() = default;

  // tokens: [batch.rows], ids in [0, vocab). logit_rows: rows whose logits are
  // wanted. Errors come from the experts or the device; then the states of the
  // batch's sequences are undefined and the sequences must be dropped.
  virtual absl::StatusOr<StepOutput> Run(const kernels::StepBatch& batch,
                                         std::span<const int32_t> tokens,
                                         std::span<const int32_t> logit_rows,
                                         Probe* probe) = 0;

  // Steps that choose tokens where the logits are, among ids below
  // `vocab_used`; null where that is the host. Freed before the decoder.
  virtual absl::StatusOr<std::unique_ptr<StepSampler>> MakeSampler(
      int32_t vocab_used) = 0;

  // OK, or why no step can ever run again: the device is lost.
  virtual absl::Status Health() const = 0;

  // Weights without the routed experts, and those of them that it holds
  // itself.
  virtual uint64_t dense_bytes() const = 0;
  virtual uint64_t expert_bytes() const = 0;
  virtual StateBytes state_bytes() const = 0;

  // A GDN state slot of a layer, for tests: [value_heads, key_dim, value_dim],
  // and the convolution rows [taps - 1, channels]; valid until the next call.
  virtual std::span<const float> GdnState(int32_t layer,
                                          int32_t slot) const = 0;
  virtual std::span<const float> ConvState(int32_t layer,
                                           int32_t slot) const = 0;
};

}  // namespace conclave::model
