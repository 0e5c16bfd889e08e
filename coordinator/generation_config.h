// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/schedule/request.h"

namespace conclave {

// The sampling defaults of generation_config.json in the model's folder; a
// missing file or field leaves SamplingParams' own. InvalidArgument names file
// and field.
absl::StatusOr<SamplingParams> ReadGenerationConfig(const std::string& folder);

// Checks a request against what the model can do; messages begin with the JSON
// field's name. `prompt_tokens` and `vocab` bound it.
struct RequestBounds {
  int32_t max_context = 0;
  int32_t vocab_used = 0;
};
absl::Status CheckRequest(const GenerateRequest& request,
                          int32_t prompt_tokens,
                          const RequestBounds& bounds);

}  // namespace conclave
