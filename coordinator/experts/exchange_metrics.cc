// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/exchange_metrics.h"

#include <vector>

namespace conclave::experts {
namespace {

// From a fast host's dispatch of one row to a slow link's prefill.
const std::vector<double>& Bounds() {
  static const auto* const bounds = new std::vector<double>{
      5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 1e-2, 0.1, 1};
  return *bounds;
}

}  // namespace

ExchangeMetrics::ExchangeMetrics(Metrics* metrics) {
  if (metrics == nullptr) return;
  dispatch_ = metrics->AddHistogram(
      "conclave_exchange_dispatch_seconds",
      "Time to plan a layer's dispatch and hand its frames over",
      Bounds());
  wait_ = metrics->AddHistogram(
      "conclave_exchange_wait_seconds",
      "Time of a layer spent waiting for the workers' replies",
      Bounds());
  sent_ = metrics->AddCounter("conclave_exchange_sent_bytes_total",
                              "Bytes of exchange frames sent to workers");
  received_ =
      metrics->AddCounter("conclave_exchange_received_bytes_total",
                          "Bytes of exchange frames received from workers");
}

void ExchangeMetrics::Dispatched(absl::Duration took) {
  if (dispatch_) dispatch_->Observe(absl::ToDoubleSeconds(took));
}
void ExchangeMetrics::Waited(absl::Duration took) {
  if (wait_) wait_->Observe(absl::ToDoubleSeconds(took));
}
void ExchangeMetrics::Sent(size_t bytes) {
  if (sent_) sent_->Add(static_cast<double>(bytes));
}
void ExchangeMetrics::Received(size_t bytes) {
  if (received_) received_->Add(static_cast<double>(bytes));
}

}  // namespace conclave::experts
