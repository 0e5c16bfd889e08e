// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "common/clock.h"
#include "common/metrics.h"
#include "coordinator/http/generation.h"
#include "coordinator/http/message.h"

namespace conclave::http {

struct RouterOptions {
  std::string model;    // the name that clients use
  std::string api_key;  // empty: none is asked for
  Clock* clock = nullptr;
  Metrics* metrics = nullptr;
};

// The OpenAI-compatible port: /v1/chat/completions, /v1/completions,
// /v1/models, /health, /metrics. /health is open, everything else wants the
// key if there is one. The result is thread-safe and keeps what it needs.
Handler MakeRouter(RouterOptions options, EngineCalls engine);

}  // namespace conclave::http
