// SPDX-License-Identifier: Apache-2.0
#include "coordinator/engine_metrics.h"

namespace conclave {

EngineMetrics::EngineMetrics(Metrics* m)
    : prompt_tokens(m->AddCounter("conclave_prompt_tokens_total",
                                  "Prompt tokens that were computed")),
      generated_tokens(m->AddCounter("conclave_generated_tokens_total",
                                     "Tokens that were generated")),
      steps(m->AddCounter("conclave_steps_total", "Steps of the engine")),
      running(m->AddGauge("conclave_running_sequences",
                          "Sequences that hold blocks")),
      waiting(m->AddGauge("conclave_waiting_requests",
                          "Requests that wait for room")),
      kv_blocks_used(m->AddGauge("conclave_kv_blocks_used", "KV blocks held")),
      kv_blocks_total(m->AddGauge("conclave_kv_blocks_total", "KV blocks")),
      step_seconds(m->AddHistogram(
          "conclave_step_seconds",
          "Time of one step",
          {0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1, 5})),
      first_token_seconds(
          m->AddHistogram("conclave_time_to_first_token_seconds",
                          "From submission to the first token",
                          {0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60})),
      metrics_(m) {}

void EngineMetrics::Ended(const std::string& outcome) {
  metrics_
      ->AddCounter("conclave_requests_total",
                   "Requests that ended, by outcome",
                   {{"outcome", outcome}})
      .Add();
}

void ShowResident(Metrics* metrics, const std::string& part, uint64_t bytes) {
  metrics
      ->AddGauge("conclave_resident_bytes",
                 "Memory of the coordinator by what it holds; kv and state "
                 "are reserved and become resident with use",
                 {{"part", part}})
      .Set(static_cast<double>(bytes));
}

}  // namespace conclave
