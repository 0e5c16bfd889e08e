// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/buffer.h"
#include "common/checkpoint/checkpoint.h"
#include "kernels/attention.h"
#include "kernels/gdn.h"
#include "kernels/moe.h"
#include "kernels/weight.h"

namespace conclave::model {

// A zero-centred norm's weight with its 1 added, once, in float32.
using NormWeight = std::vector<float>;

// One layer without its routed experts. `gdn` is set unless `full_attention`;
// the small float32 tensors that the views point to live beside them.
struct LayerWeights {
  bool full_attention = false;
  NormWeight input_norm;  // [hidden]
  kernels::AttentionWeights attention;
  kernels::GdnWeights gdn;
  NormWeight post_attention_norm;  // [hidden]
  kernels::WeightView router;      // [experts, hidden]
  kernels::SharedExpertWeights shared;

  NormWeight q_norm, k_norm;
  std::vector<float> conv, a_log, dt_bias, gdn_norm;
};

// All of the model but the routed experts, in memory of its own: no step waits
// for a page of the file.
struct DenseWeights {
  kernels::WeightView embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  NormWeight final_norm;
  kernels::WeightView head;     // [vocab, hidden]
  std::vector<Buffer> storage;  // what the views of linears point to

  uint64_t bytes() const;  // of everything
};

absl::StatusOr<DenseWeights> LoadDenseWeights(
    const checkpoint::Checkpoint& checkpoint);

}  // namespace conclave::model
