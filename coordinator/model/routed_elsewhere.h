// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/ids.h"
#include "coordinator/experts/experts.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"

namespace conclave::model {

// What a device's router chose, on the host.
struct ReadChoices {
  int32_t rows = 0, top_k = 0;
  std::vector<int32_t> expert;  // [rows, top_k], without the shared expert
  std::vector<float> weight;    // likewise
  std::vector<float> shared;    // [rows], the shared expert's weights

  // Waits for the device.
  absl::Status Read(kernels::DeviceQueue* queue,
                    const kernels::DeviceEntries& entries);
  experts::Routing routing() const {
    return {.rows = rows, .top_k = top_k, .expert = expert, .weight = weight};
  }
};

// Between a decoder on a device and routed experts that others hold, for one
// micro-batch: a layer's choices come to the host, rows go out, sums come back
// to the device. The shared expert stays there. Used by the decoder's thread.
class RoutedElsewhere {
 public:
  RoutedElsewhere() = default;
  // `rows_max`: of a micro-batch. The queue and the experts outlive this.
  static absl::StatusOr<RoutedElsewhere> Create(
      kernels::DeviceQueue* queue,
      experts::Experts* experts,
      const checkpoint::ModelConfig& config,
      int32_t rows_max,
      int32_t micro_batch);

  // Before the layers of a step, of which the experts know, whose pairs are
  // `all`.
  absl::Status BeginStep(const kernels::DeviceEntries& all);

  // [rows, hidden]: what Start sends, to be filled in before it and then left
  // alone until Finish.
  std::vector<float>* rows() { return &rows_; }
  // Reads what the router chose for the layer, waiting for the device, and
  // sends the rows.
  absl::Status Start(LayerId layer, const kernels::DeviceEntries& all);
  // One pair per row: the shared expert, with the weights of the layer that
  // was started.
  const kernels::DeviceEntries& shared() const { return shared_; }
  // Waits for the sums and copies them to device memory, [rows, hidden].
  absl::Status Finish(float* out);

  // What the experts of the step answered last, if that was an error: the
  // device had no part in it.
  const absl::Status& failure() const { return failure_; }

 private:
  kernels::DeviceQueue* queue_ = nullptr;
  experts::Experts* experts_ = nullptr;
  int32_t hidden_ = 0;
  int32_t micro_batch_ = 0;
  kernels::DeviceEntries shared_;
  kernels::DeviceBuffer numbers_;  // what shared_ points to
  int32_t rows_max_ = 0;
  absl::Status failure_;

  experts::Ticket ticket_;
  ReadChoices choices_;
  std::vector<float> rows_, sum_;
};

}  // namespace conclave::model
