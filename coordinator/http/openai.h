// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/schedule/request.h"

namespace conclave::http {

// Prompts of one /v1/completions request; each becomes a choice.
inline constexpr int32_t kPromptsMax = 128;
// What OpenAI's completions generate when max_tokens is left out.
inline constexpr int32_t kCompletionTokensDefault = 16;

// A request body, parsed and checked as far as JSON goes; the engine checks
// what needs the model.
struct ApiRequest {
  bool chat = true;
  bool stream = false;
  bool include_usage = false;             // one more chunk with the usage
  std::vector<GenerateRequest> requests;  // one per choice, ids not set
};

struct ParseOptions {
  std::string model;        // the only name that "model" may have
  SamplingParams defaults;  // for fields that the client leaves out
};

// InvalidArgument starts with the field's path ("messages[1].content[0]: ...").
// NotFound: another model is meant. Fields that this server would not honour
// are refused by name, never ignored; OpenAI's bookkeeping fields (user,
// metadata, store, ...) are accepted. Pure.
absl::StatusOr<ApiRequest> ParseChatRequest(std::string_view body,
                                            const ParseOptions& options);
absl::StatusOr<ApiRequest> ParseCompletionRequest(std::string_view body,
                                                  const ParseOptions& options);

}  // namespace conclave::http
