// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "absl/status/statusor.h"
#include "worker/worker.h"

namespace conclave::worker {

inline constexpr char kUsage[] =
    R"(conclave-worker: holds experts of a Qwen3.5 MoE model for a coordinator.

Usage:

  conclave-worker --config cluster.yaml --name w0
      the worker w0 of the file that the coordinator reads, too
  conclave-worker --listen 127.0.0.1:7001
      without a file; name and experts come from the coordinator, which
      sends what is not in a local checkpoint, the cache or another worker

  --config FILE       cluster configuration
  --name W            which of its workers this is
  --listen HOST:PORT  address to listen on (without --config)
  --model DIR         checkpoint folder on this machine; "off": fetch slices
  --cache DIR         fetched slices (~/.cache/conclave), "off" = none
  --cache_gb N        what the cache may keep, 0 = everything
  --backend B         auto (a GPU where there is one, else the CPU, and says
                      why), cuda, cpu or cpu-plain
  --gpu N             which GPU, as the CUDA driver counts (0)
  --threads N         compute threads, 0 = one per core
  --spin_us N         poll this long before blocking (50), -1 = never
  --simd TARGET       pin one SIMD target, e.g. avx2
  --log_level LEVEL   debug, info, warning, error, off
  --version, --help

Outside loopback the configuration must name TLS files (tls: ca, cert, key) or
say insecure: true. SIGINT and SIGTERM end the worker.)";

// Reads the flags and the configuration; pins SIMD and the log level. Errors
// name the flag.
absl::StatusOr<WorkerOptions> OptionsFromFlags();

}  // namespace conclave::worker
