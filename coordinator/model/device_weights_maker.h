// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/model/device_weights.h"
#include "kernels/expert_stack.h"

namespace conclave::model {

// A linear that is still to come to the device; without a host view its
// numbers are made up.
struct Source {
  WeightLayout layout;
  std::optional<kernels::WeightView> host = std::nullopt;
};

struct ExpertSources {
  Source gate, up, down;
};

// Makes the parts of one model's DeviceWeights, in any order. `what` is named
// in errors. Without a queue it only counts bytes.
class DeviceWeightsMaker {
 public:
  DeviceWeightsMaker(kernels::DeviceQueue* queue, DeviceWeights* out)
      : queue_(queue), loader_(queue), out_(out) {}

  bool counts() const { return queue_ == nullptr; }

  // Neighbours whose formats allow it share a matrix. `width`: of an output row
  // of which theirs are the first columns; 0: they are all of it.
  absl::Status Linears(const std::vector<Source>& sources,
                       const std::string& what,
                       DeviceLinears* to,
                       int32_t width = 0);

  // A rank's part of the language model's head; nothing where it has none.
  absl::Status Head(const Source& whole, const RankCut& cut, DeviceLinears* to);

  // expert(i) for i in [0, count), all of one layout; then the shared one.
  absl::Status Experts(int32_t count,
                       const std::function<ExpertSources(int32_t)>& expert,
                       const ExpertSources& shared,
                       const std::string& what,
                       std::vector<kernels::DeviceExpertStack>* to);

  // The shared one alone, as number `count` of the experts.
  absl::Status SharedExpert(int32_t count,
                            const ExpertSources& shared,
                            const std::string& what,
                            std::vector<kernels::DeviceExpertStack>* to);

  absl::Status Floats(std::span<const float> from, const float** to);
  absl::Status Ones(int64_t size, const float** to);
  void CountFloats(int64_t size);

  // As the checkpoint stores it; made up where the view has no data.
  absl::Status Table(const WeightLayout& layout,
                     const kernels::WeightView& host,
                     kernels::WeightView* to);

 private:
  // The same numbers for the same name.
  absl::Status MakeUp(const std::string& name, kernels::DeviceMatrix* matrix);
  absl::StatusOr<kernels::DeviceExpertStack> Stack(const ExpertSources& each,
                                                   int32_t stack,
                                                   const std::string& what);
  absl::Status Fill(const ExpertSources& e,
                    int32_t index,
                    kernels::DeviceExpertStack* to);

  kernels::DeviceQueue* queue_;
  kernels::MatrixLoader loader_;
  DeviceWeights* out_;
};

// "layer 3, out_proj"
std::string LayerName(size_t layer, const char* part);

}  // namespace conclave::model
