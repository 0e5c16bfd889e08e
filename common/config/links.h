// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/v1/links.pb.h"

namespace conclave::config {

// The file that `conclave doctor --out` writes and `conclave plan --links`
// reads (proto/conclave/v1/links.proto). Errors carry file, line or field:
// unknown keys, wrong types, numbers below zero, a worker twice or without a
// name, steps out of order.
absl::StatusOr<v1::Links> LoadLinks(const std::string& path);
absl::StatusOr<v1::Links> ParseLinks(std::string_view yaml,
                                     const std::string& file_name);

// As YAML that ParseLinks reads; fields that are 0 are left out.
std::string LinksToYaml(const v1::Links& links);

// Null where the file has no such worker.
const v1::MeasuredWorker* FindMeasured(const v1::Links& links,
                                       std::string_view name);

}  // namespace conclave::config
