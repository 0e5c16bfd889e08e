// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/model/decoder.h"
#include "kernels/device_attention.h"
#include "kernels/device_gdn.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"
#include "kernels/device_sampling.h"

namespace conclave::model {

// Of that model, with keys and values in `kv`, GDN states in `gdn`.
StateBytes DeviceStateBytesOf(const checkpoint::ModelConfig& config,
                              kernels::KvDType kv,
                              kernels::GdnDType gdn);

// Rows of the largest step: filling a recorded one up takes a third more rows
// than sequences at the most.
inline int32_t FilledRowsMax(int32_t rows_max, int32_t sequences_max) {
  return rows_max + sequences_max / 2;
}
// Likewise of a step of one row per sequence.
inline int32_t FilledSequencesMax(int32_t sequences_max) {
  return FilledRowsMax(sequences_max, sequences_max);
}

// Of all logits of a prompt at a time.
inline constexpr uint64_t kLogitBytes = uint64_t{512} << 20;
// Rows of them at a time: as many as those bytes hold, but all of the largest
// recorded step.
int32_t LogitRowsMax(int32_t vocab,
                     int32_t rows_max,
                     int32_t sequences_max,
                     uint64_t logit_bytes = kLogitBytes);

// What a model on a device needs beside its weights, allocated once: states of
// sequences and the arrays of a step. KV blocks have one more than `sizes`
// says, for rows that fill a recorded step up.
class DeviceMemory {
 public:
  struct Options {
    StateSizes sizes;
    int32_t rows_max = 0;
    int32_t sequences_max = 0;
    bool exact = false;
    kernels::KvDType kv = kernels::KvDType::kBF16;
    kernels::GdnDType gdn = kernels::GdnDType::kF32;
    int32_t logit_cols = 0;  // of a row of logits here; 0: there are none
    bool samples = false;    // tokens are chosen here, of logits of all columns
    uint64_t logit_bytes = kLogitBytes;
    // Whose states these are too; null: it has its own.
    const DeviceMemory* states_of = nullptr;
  };
  static absl::StatusOr<DeviceMemory> Create(
      kernels::DeviceQueue* queue,
      const checkpoint::ModelConfig& config,
      const Options& options);
  // Of everything but states; allocates nothing.
  static absl::StatusOr<uint64_t> ArrayBytes(
      kernels::DeviceQueue* queue,
      const checkpoint::ModelConfig& config,
      const Options& options);

  // Those that have one row per row of the step begin at `row` of it.
  float* x(int32_t row = 0) const;  // [rows, hidden]
  kernels::DeviceRows u(int32_t row = 0) const;
  // What rounding u lost; null where nothing is rounded.
  void* low(int32_t row = 0) const;
  float* projected() const { return projected_.as<float>(); }
  kernels::DeviceRows mixed() const { return Rows(mixed_); }
  float* y() const { return y_.as<float>(); }  // [rows, hidden]
  float* router_logits() const { return router_logits_.as<float>(); }
  kernels::DeviceRows expert_hidden() const { return Rows(expert_hidden_); }
  float* pairs(int32_t row = 0) const;  // [rows, top_k + 1, hidden]
  // LogitRowsMax; the same on all ranks of a group.
  int32_t wanted_max() const { return wanted_max_; }
  kernels::DeviceRows wanted() const { return Rows(wanted_); }
  float* logits() const { return logits_.as<float>(); }
  int32_t* next() const { return next_.as<int32_t>(); }
  float* scratch() const { return scratch_.as<float>(); }
  void* sampling_scratch() const { return sampling_scratch_.as<void>(); }
  // [sequences_max], all greedy.
  const kernels::DeviceSampling* greedy() const {
    return greedy_.as<kernels::DeviceSampling>();
  }

  kernels::DeviceKv kv(size_t layer) const;
  uint64_t kv_bytes(size_t layer) const { return (*layers_)[layer].kv.bytes(); }
  kernels::DeviceGdnState gdn(size_t layer) const;
  const kernels::AttentionShape& attention() const { return attention_; }
  const kernels::GdnShape& gdn_shape() const { return gdn_; }
  kernels::GdnForm gdn_form() const {
    return exact_ ? kernels::GdnForm::kRecurrent : kernels::GdnForm::kChunked;
  }
  // Of one slot of one layer.
  size_t conv_floats() const;
  size_t recurrent_size() const;  // numbers

  // Of `rows` rows from `row` on; groups of pairs lie at one place for all.
  kernels::DeviceEntries EntriesOf(int32_t rows, int32_t row = 0) const;

 private:
  struct Layer {
    kernels::DeviceBuffer kv, conv, recurrent;
  };
  void TakeShapes(const checkpoint::ModelConfig& config,
                  const Options& options);
  absl::Status AllocateStates(kernels::DeviceQueue* queue,
                              const checkpoint::ModelConfig& config,
                              const Options& options);
  absl::Status AllocateArrays(kernels::DeviceQueue* queue,
                              const checkpoint::ModelConfig& config,
                              const Options& options);
  absl::Status AllocateLogits(kernels::DeviceQueue* queue,
                              const checkpoint::ModelConfig& config,
                              const Options& options);
  // Counts it, and allocates it unless counting is all.
  absl::Status Take(kernels::DeviceQueue* queue,
                    size_t bytes,
                    kernels::DeviceBuffer* to);
  size_t ScratchFloats(const kernels::DeviceQueue& queue,
                       size_t rows,
                       size_t sequences) const;
  kernels::DeviceRows Rows(const kernels::DeviceBuffer& buffer) const {
    return {.data = buffer.as<void>(),
            .bf16 = !exact_,
            .wide = exact_ ? nullptr : ordered_.as<void>()};
  }

  bool only_count_ = false;
  uint64_t array_bytes_ = 0;
  bool exact_ = false;
  kernels::KvDType kv_ = kernels::KvDType::kBF16;
  kernels::GdnDType gdn_dtype_ = kernels::GdnDType::kF32;
  int32_t hidden_ = 0;
  int32_t experts_ = 0;
  int32_t top_k_ = 0;
  int32_t wanted_max_ = 0;
  kernels::AttentionShape attention_;
  kernels::GdnShape gdn_;
  std::shared_ptr<const std::vector<Layer>> layers_;
  kernels::DeviceBuffer x_, u_, low_, ordered_, projected_, mixed_, y_,
      router_logits_, expert_hidden_, pairs_, wanted_, logits_, next_, scratch_,
      sampling_scratch_, greedy_;
  kernels::DeviceBuffer entry_row_, entry_place_, entry_expert_, entry_weight_,
      entry_groups_, entry_count_;
};

}  // namespace conclave::model
