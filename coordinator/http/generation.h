// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/engine.h"
#include "coordinator/http/message.h"
#include "coordinator/http/openai.h"
#include "coordinator/http/openai_reply.h"

namespace conclave::http {

// What this folder asks of the engine, as functions, so that tests can answer
// in its place. All are thread-safe.
struct EngineCalls {
  std::function<RequestId()> next_id;
  std::function<absl::StatusOr<int32_t>(GenerateRequest, TokenSink)> submit;
  std::function<void(RequestId)> cancel;
  std::function<absl::Status()> health;
  std::function<Engine::Info()> info;
};

// Told how a reply ended: the HTTP status, or 499 when the client left first.
using EndedFn = std::function<void(int http_status)>;

// Submits every prompt of a request and sends what the engine says: one
// object, or a stream of events whose head is held back until the first event,
// so that a reply that never began can still be an error with its own status.
// A begun stream ends in an error event without [DONE]. When the client goes,
// everything is cancelled. Call on the connection's executor.
void StartGeneration(const EngineCalls& engine,
                     ApiRequest request,
                     ReplyHead head,
                     Responder responder,
                     EndedFn ended);

// A whole error response; 429 and 503 carry Retry-After.
Response ErrorResponse(const absl::Status& status);

}  // namespace conclave::http
