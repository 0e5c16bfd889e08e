// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/schedule/request.h"

namespace conclave::text {

// The Qwen3.5 chat format, docs/qwen3.5-moe 4.2 and appendix B, in code: the
// checkpoint's Jinja file is never executed.
struct TemplateOptions {
  bool add_generation_prompt = true;
  bool enable_thinking = true;
};

// InvalidArgument names the message: "messages[2].role: ...".
absl::StatusOr<std::string> RenderChat(const std::vector<Message>& messages,
                                       const std::vector<Tool>& tools,
                                       const TemplateOptions& options);

// The per-message soft switches, which are ours: a leading word /think,
// /nothink or /no_think of a user message is removed; the last user message's
// word, if it has one, is returned (true = think).
std::optional<bool> ApplySoftSwitches(std::vector<Message>& messages);

}  // namespace conclave::text
