// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <string>

#include "absl/status/statusor.h"

namespace conclave::checkpoint {

using WeightMap = std::map<std::string, std::string>;  // tensor -> file

// weight_map of model.safetensors.index.json. Every file is a plain name: an
// index cannot lead out of its folder.
absl::StatusOr<WeightMap> ReadSafetensorsIndex(const std::string& path);

}  // namespace conclave::checkpoint
