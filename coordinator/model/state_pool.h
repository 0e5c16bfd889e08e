// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "coordinator/model/decoder.h"
#include "kernels/attention.h"
#include "kernels/gdn.h"

namespace conclave::model {

// Zeroed memory that costs pages only where it is touched.
class LazyMemory {
 public:
  LazyMemory() = default;
  // ResourceExhausted when the address space is not granted.
  static absl::StatusOr<LazyMemory> Reserve(size_t floats);
  ~LazyMemory();
  LazyMemory(LazyMemory&& other) noexcept;
  LazyMemory& operator=(LazyMemory&& other) noexcept;

  std::span<float> floats() const { return floats_; }

 private:
  std::span<float> floats_;
};

// What the model remembers of its sequences: per attention layer the KV
// blocks, per GDN layer the convolution rows and the recurrent states.
class StatePool {
 public:
  static absl::StatusOr<StatePool> Create(const checkpoint::ModelConfig& config,
                                          const StateSizes& sizes);

  kernels::KvCache kv(int32_t layer) const;
  kernels::GdnState gdn(int32_t layer) const;
  // One slot of a GDN layer.
  std::span<const float> conv_slot(int32_t layer, int32_t slot) const;
  std::span<const float> recurrent_slot(int32_t layer, int32_t slot) const;

 private:
  struct Layer {
    LazyMemory kv, conv, recurrent;
  };
  std::vector<Layer> layers_;
  StateSizes sizes_;
};

}  // namespace conclave::model
