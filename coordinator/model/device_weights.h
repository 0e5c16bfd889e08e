// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/checkpoint/shard_weights.h"
#include "coordinator/model/rank_cut.h"
#include "coordinator/model/weights.h"
#include "kernels/device_attention.h"
#include "kernels/device_gdn.h"
#include "kernels/device_matrix.h"
#include "kernels/device_product.h"

namespace conclave::model {

// Linears that read the same rows and write into one output row, in as few
// matrices as their formats allow.
struct DeviceLinears {
  std::vector<kernels::DeviceMatrix> parts;
  int32_t width = 0;  // of an output row
};

struct DeviceLayer {
  bool full_attention = false;
  const float* input_norm = nullptr;
  const float* post_attention_norm = nullptr;
  kernels::DeviceAttentionWeights attention;
  kernels::DeviceGdnWeights gdn;
  DeviceLinears in;      // q k v, or qkv z b a
  DeviceLinears out;     // back to hidden
  DeviceLinears router;  // the router and the shared expert's gate
  bool routed = true;    // the layer's routed experts are here
  // These and, as the last of the stack where its format is theirs, the shared
  // one; else that is a stack of its own.
  std::vector<kernels::DeviceExpertStack> experts;
};

// Per layer, whether its routed experts are on the device; empty: all are.
using RoutedHere = std::vector<bool>;
inline bool IsHere(const RoutedHere& here, size_t layer) {
  return here.empty() || here[layer];
}

// The model on one device, with the routed experts that belong there, or what
// one rank of a group has of it.
struct DeviceWeights {
  checkpoint::ModelConfig config;  // of that part
  RankCut cut;
  kernels::WeightView embedding;  // device pointers
  std::vector<DeviceLayer> layers;
  const float* final_norm = nullptr;
  DeviceLinears head;  // of cut.tokens
  // What the pointers above point to.
  std::vector<kernels::DeviceBuffer> storage;

  uint64_t dense_bytes = 0;
  uint64_t expert_bytes = 0;
};

struct DeviceLoad {
  RoutedHere here = {};
  RankConfig rank = {};
  // The dense part where it is read already: by ranks of a group, once.
  const DenseWeights* dense = nullptr;
  checkpoint::LoadProgressFn progress = nullptr;  // in bytes
};

// Reads the checkpoint part by part: host memory holds the dense part and one
// layer of experts at a time. ResourceExhausted: the device is too small.
// InvalidArgument: it cannot be cut for so many ranks.
absl::StatusOr<DeviceWeights> LoadDeviceWeights(
    const checkpoint::Checkpoint& checkpoint,
    kernels::DeviceQueue* queue,
    const DeviceLoad& load);

// What a linear is for: formats treat them differently.
enum class LinearRole : uint8_t { kTable, kMixer, kGates, kShared, kExpert };

// A model of a given shape whose weights are made up on the device.
struct MadeUpModel {
  checkpoint::ModelConfig config;
  std::function<WeightLayout(LinearRole role, int64_t rows, int64_t cols)>
      layout;
};
// One rank's part. Parts that several ranks hold have the same numbers.
absl::StatusOr<DeviceWeights> MakeUpWeights(const MadeUpModel& model,
                                            const RankConfig& rank,
                                            kernels::DeviceQueue* queue);
// Its bytes.
absl::StatusOr<uint64_t> MadeUpBytes(const MadeUpModel& model,
                                     const RankConfig& rank);

}  // namespace conclave::model
