// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include "common/metrics.h"

namespace conclave {

// Memory of the coordinator; part: "dense", "experts", "kv" or "state".
void ShowResident(Metrics* metrics, const std::string& part, uint64_t bytes);

// The engine's series in /metrics.
class EngineMetrics {
 public:
  explicit EngineMetrics(Metrics* metrics);

  // outcome: "stop", "length", "tool_calls", "cancelled" or "error".
  void Ended(const std::string& outcome);

  Counter prompt_tokens;
  Counter generated_tokens;
  Counter steps;
  Gauge running;
  Gauge waiting;
  Gauge kv_blocks_used;
  Gauge kv_blocks_total;
  Histogram step_seconds;
  Histogram first_token_seconds;

 private:
  Metrics* metrics_;
};

}  // namespace conclave
