// SPDX-License-Identifier: Apache-2.0
// A cluster file of any bytes, and any HOST:PORT.

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "common/config/cluster_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace conclave;  // NOLINT: a fuzzer's main
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto address = config::ParseHostPort(text);
  if (address.ok() && (address->port < 0 || address->port > 65535)) {
    std::abort();
  }
  const auto cluster = config::ParseClusterConfig(text, "fuzz.yaml");
  if (!cluster.ok()) return 0;
  if (!config::Validate(*cluster).ok()) std::abort();
  (void)config::CheckHttpBind(*cluster);
  for (const auto& worker : cluster->workers()) {
    (void)config::CheckWorkerBind(*cluster, worker);
    if (!config::FindWorker(*cluster, worker.name()).ok()) std::abort();
  }
  return 0;
}
