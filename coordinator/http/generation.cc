// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/generation.h"

#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

#include "coordinator/http/sse.h"
#include "coordinator/http/status_map.h"

namespace conclave::http {
namespace {

constexpr int kClientLeft = 499;

// One request under way. Lives in the engine's sinks and the connection; all
// members run on the connection's executor, but for the sinks, which post.
class Generation : public std::enable_shared_from_this<Generation> {
 public:
  Generation(EngineCalls engine,
             ApiRequest request,
             ReplyHead head,
             Responder responder,
             EndedFn ended)
      : engine_(std::move(engine)),
        request_(std::move(request)),
        head_(std::move(head)),
        responder_(std::move(responder)),
        ended_(std::move(ended)),
        choices_(request_.requests.size()),
        left_(request_.requests.size()) {}

  void Start() {
    responder_.on_gone(
        [self = shared_from_this()](absl::Status why) { self->OnGone(why); });
    for (size_t i = 0; i < choices_.size(); ++i) {
      GenerateRequest& one = request_.requests[i];
      one.id = engine_.next_id();
      choices_[i].wants_logprobs = one.logprobs;
      const RequestId id = one.id;
      auto tokens = engine_.submit(
          std::move(one),
          [self = shared_from_this(), i](const TokenEvent& event) {
            self->responder_.post(
                [self, i, event] { self->OnEvent(i, event); });
          });
      if (!tokens.ok()) return Fail(tokens.status());
      ids_.push_back(id);
    }
  }

 private:
  void OnEvent(size_t index, const TokenEvent& event) {
    if (over_) return;
    if (!event.error.ok()) return Fail(event.error);
    if (request_.stream) {
      Stream(static_cast<int32_t>(index), event);
      // Usage needs the numbers, nobody needs the text again.
      TokenEvent numbers;
      numbers.prompt_tokens = event.prompt_tokens;
      numbers.completion_tokens = event.completion_tokens;
      numbers.reasoning_tokens = event.reasoning_tokens;
      Append(numbers, &choices_[index]);
    } else {
      Append(event, &choices_[index]);
    }
    if (event.finish != FinishReason::kNone && --left_ == 0) Finish();
  }

  void Stream(int32_t index, const TokenEvent& event) {
    if (!begun_) {
      begun_ = true;
      responder_.begin("text/event-stream; charset=utf-8");
      if (head_.chat) {
        for (size_t i = 0; i < choices_.size(); ++i) {
          Write(RoleChunk(head_, static_cast<int32_t>(i)));
        }
      }
    }
    Write(DeltaChunk(head_,
                     index,
                     event,
                     choices_[static_cast<size_t>(index)].wants_logprobs));
    if (event.finish != FinishReason::kNone) {
      Write(FinishChunk(head_, index, event.finish));
    }
  }

  void Write(const std::string& chunk) {
    if (!chunk.empty()) responder_.write(SseData(chunk));
  }

  void Finish() {
    End(200);
    if (!request_.stream) {
      Response response;
      response.body = FullReply(head_, choices_);
      return responder_.send(std::move(response));
    }
    if (request_.include_usage) Write(UsageChunk(head_, choices_));
    responder_.write(SseDone());
    responder_.end();
  }

  void Fail(const absl::Status& status) {
    const int http_status = HttpStatusOf(status.code());
    End(http_status);
    if (!begun_) return responder_.send(ErrorResponse(status));
    Write(ErrorJson(status, http_status, /*numeric_code=*/true));
    responder_.end();
  }

  void OnGone(const absl::Status& why) {
    if (over_) return;
    if (!absl::IsCancelled(why)) return Fail(why);
    End(kClientLeft);
  }

  // The engine forgets what has not finished; ids that have are ignored there.
  void End(int http_status) {
    over_ = true;
    if (left_ > 0) {
      for (const RequestId id : ids_) engine_.cancel(id);
    }
    ended_(http_status);
  }

  const EngineCalls engine_;
  ApiRequest request_;
  const ReplyHead head_;
  const Responder responder_;
  const EndedFn ended_;
  std::vector<Choice> choices_;
  std::vector<RequestId> ids_;
  size_t left_;
  bool begun_ = false;
  bool over_ = false;
};

}  // namespace

void StartGeneration(const EngineCalls& engine,
                     ApiRequest request,
                     ReplyHead head,
                     Responder responder,
                     EndedFn ended) {
  head.include_usage = request.include_usage;
  std::make_shared<Generation>(engine,
                               std::move(request),
                               std::move(head),
                               std::move(responder),
                               std::move(ended))
      ->Start();
}

Response ErrorResponse(const absl::Status& status) {
  Response response;
  response.status = HttpStatusOf(status.code());
  response.body = ErrorJson(status, response.status);
  if (response.status == 429 || response.status == 503) {
    response.headers.emplace_back("Retry-After", "1");
  }
  if (response.status == 401) {
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  return response;
}

}  // namespace conclave::http
