// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "common/checkpoint/shard_weights.h"
#include "common/delivery/content_hash.h"
#include "kernels/device_product.h"

namespace conclave::worker {

// A shard that is loaded or on the way. Where the worker computes on a GPU, a
// layer leaves host memory when all of it has come (worker/expert_device.h).
struct HeldShard {
  checkpoint::ShardWeights weights;
  std::vector<checkpoint::SliceLayout> layouts;  // [slices]
  // Of the bytes, where it was computed; a local copy's mostly is not.
  std::vector<std::optional<delivery::ContentHash>> hashes;  // [slices]
  std::vector<char> done;                                    // [slices]
  // [layers], null where the layer is in host memory or has no slice; empty on
  // the CPU.
  std::vector<std::unique_ptr<const kernels::DeviceExpertStack>> on_device;

  size_t LayerOf(size_t slice) const {
    return static_cast<size_t>(Index(weights.shard.slices[slice].layer));
  }
  bool InHostMemory(size_t slice) const {
    return on_device.empty() || on_device[LayerOf(slice)] == nullptr;
  }
  // Bytes on the device now.
  uint64_t DeviceBytes() const {
    uint64_t bytes = 0;
    for (const auto& layer : on_device) {
      if (layer != nullptr)
        bytes += layer->gate_up.bytes() + layer->down.bytes();
    }
    return bytes;
  }
};

}  // namespace conclave::worker
