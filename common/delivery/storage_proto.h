// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "common/checkpoint/slice_part.h"
#include "conclave/v1/control.pb.h"
#include "conclave/v1/delivery.pb.h"

namespace conclave::delivery {

v1::SliceStorage ToProto(const checkpoint::SliceLayout& layout);

// InvalidArgument: no such storage, or not of a slice of `width` columns of an
// expert with `hidden` inputs.
absl::StatusOr<checkpoint::SliceLayout> FromProto(const v1::SliceStorage& from,
                                                  int64_t width,
                                                  int64_t hidden);

// Adds the model's shape, and how each slice that the request names is stored.
// InvalidArgument: a slice is no part of the checkpoint.
absl::Status DescribeSlices(const checkpoint::Checkpoint& checkpoint,
                            v1::AssignRequest* request);

Slice FromProto(const v1::SliceAssignment& from);

}  // namespace conclave::delivery
