// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <google/protobuf/message.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace conclave::config {

// Called for every message that the reader makes, before its fields are read:
// the place for defaults.
using InitMessageFn = std::function<void(google::protobuf::Message&)>;

// Fills `out` from YAML; keys are field names. InvalidArgument names file,
// line, key and what was meant for: broken YAML, an unknown or repeated key, a
// value of the wrong type, more items than any cluster needs.
absl::Status ReadYaml(std::string_view yaml,
                      const std::string& file_name,
                      const InitMessageFn& init,
                      google::protobuf::Message& out);

// The candidate that `word` most likely stands for; "" if none is near.
std::string DidYouMean(std::string_view word,
                       const std::vector<std::string>& candidates);

}  // namespace conclave::config
