// SPDX-License-Identifier: Apache-2.0
// The half of the engine that runs on the callers' threads: text to tokens,
// checks, the queue.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/engine_impl.h"
#include "coordinator/text/chat_template.h"

namespace conclave {
namespace {

// Positions where a later turn's prefix may end: behind "<|im_end|>\n".
std::vector<int32_t> TurnBorders(const std::vector<int32_t>& ids,
                                 const text::Tokenizer& tokenizer) {
  std::vector<int32_t> out;
  const auto end = tokenizer.AddedToken("<|im_end|>");
  if (!end) return out;
  for (size_t i = 1; i < ids.size(); ++i) {
    if (ids[i - 1] == *end && tokenizer.Bytes(ids[i]) == "\n") {
      out.push_back(static_cast<int32_t>(i) + 1);
    }
  }
  return out;
}

}  // namespace

// `thinking`: the prompt ends inside the think block.
absl::StatusOr<std::vector<int32_t>> Engine::Impl::PromptIds(
    GenerateRequest& request, bool* thinking) const {
  *thinking = false;
  if (auto* ids = std::get_if<std::vector<int32_t>>(&request.prompt)) {
    for (size_t i = 0; i < ids->size(); ++i) {
      if ((*ids)[i] < 0 || (*ids)[i] >= bounds.vocab_used) {
        return absl::InvalidArgumentError(
            absl::StrCat("prompt: token ",
                         (*ids)[i],
                         " at index ",
                         i,
                         " is not in the vocabulary of ",
                         bounds.vocab_used));
      }
    }
    return *ids;
  }
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    auto ids = tokenizer->Encode(*text);
    if (ids.ok()) return ids;
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: ", ids.status().message()));
  }
  auto& chat = std::get<ChatPrompt>(request.prompt);
  std::optional<bool> word;
  if (parts.soft_switches) word = text::ApplySoftSwitches(chat.messages);
  *thinking = chat.enable_thinking.value_or(word.value_or(true));
  const std::vector<Tool> none;
  ASSIGN_OR_RETURN(const std::string text,
                   text::RenderChat(chat.messages,
                                    chat.tool_choice_none ? none : chat.tools,
                                    {.add_generation_prompt = true,
                                     .enable_thinking = *thinking}));
  auto ids = tokenizer->Encode(text);
  if (ids.ok()) return ids;
  return absl::InvalidArgumentError(
      absl::StrCat("messages: ", ids.status().message()));
}

absl::StatusOr<std::unique_ptr<ActiveRequest>> Engine::Impl::Prepare(
    GenerateRequest request, TokenSink sink) const {
  auto active = std::make_unique<ActiveRequest>();
  bool thinking = false;
  ASSIGN_OR_RETURN(active->tokens, PromptIds(request, &thinking));
  active->prompt_tokens = static_cast<int32_t>(active->tokens.size());
  RETURN_IF_ERROR(CheckRequest(request, active->prompt_tokens, bounds));
  const int64_t kv_tokens =
      int64_t{scheduler->states().blocks_total()} * limits::kKvBlockTokens;
  // Not asked for: as many as the context and the KV cache can hold.
  active->max_tokens = request.max_tokens.value_or(static_cast<int32_t>(
      std::max<int64_t>(std::min<int64_t>(bounds.max_context, kv_tokens) -
                            active->prompt_tokens,
                        1)));
  active->spec = {
      .id = request.id,
      .prompt_tokens = active->prompt_tokens,
      .max_tokens = active->max_tokens,
      .all_logits = request.echo && request.logprobs,
      .cell_ends = schedule::CellEnds(active->prompt_tokens,
                                      TurnBorders(active->tokens, *tokenizer))};
  if (!scheduler->CanEverFit(active->spec)) {
    const bool chat = std::holds_alternative<ChatPrompt>(request.prompt);
    return absl::InvalidArgumentError(absl::StrCat(
        active->prompt_tokens < kv_tokens && request.max_tokens ? "max_tokens"
        : chat                                                  ? "messages"
                                                                : "prompt",
        ": prompt and reply may take ",
        active->prompt_tokens + active->max_tokens,
        " tokens, the KV cache holds ",
        kv_tokens));
  }
  const uint64_t seed = request.sampling.seed.value_or(
      static_cast<uint64_t>(absl::ToUnixNanos(parts.clock->Now())) ^
      (static_cast<uint64_t>(request.id) << 32));
  active->sampler = std::make_unique<sample::Sampler>(
      request.sampling, seed, bounds.vocab_used, active->tokens);
  ReplyStream::Options options{
      .tokenizer = tokenizer.get(),
      .stop = request.stop,
      .parse = request.parse_reply,
      .thinking = thinking,
      .tools = {},
      .id_prefix =
          absl::StrCat("call_", static_cast<uint64_t>(request.id), "_")};
  if (auto* chat = std::get_if<ChatPrompt>(&request.prompt);
      chat != nullptr && !chat->tool_choice_none) {
    options.tools = chat->tools;
  }
  active->stream = std::make_unique<ReplyStream>(std::move(options));
  active->submitted = parts.clock->Now();
  active->request = std::move(request);
  active->sink = std::move(sink);
  return active;
}

absl::StatusOr<int32_t> Engine::Impl::Submit(GenerateRequest request,
                                             TokenSink sink) {
  ASSIGN_OR_RETURN(std::unique_ptr<ActiveRequest> active,
                   Prepare(std::move(request), std::move(sink)));
  if (parts.ready != nullptr) RETURN_IF_ERROR(parts.ready());
  const int32_t prompt_tokens = active->prompt_tokens;
  const std::lock_guard<std::mutex> lock(mutex);
  RETURN_IF_ERROR(lost);
  if (stop) return absl::UnavailableError("the server is stopping");
  if (outstanding >= max_outstanding) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full (", max_queue, " requests wait)"));
  }
  ++outstanding;
  inbox.push_back(std::move(active));
  arrival.notify_one();
  return prompt_tokens;
}

void Engine::Impl::Cancel(RequestId id) {
  const std::lock_guard<std::mutex> lock(mutex);
  cancelled.push_back(id);
  arrival.notify_one();
}

}  // namespace conclave
