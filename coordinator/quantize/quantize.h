// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/checkpoint/checkpoint.h"
#include "common/thread_pool.h"
#include "coordinator/quantize/target.h"

namespace conclave::quantize {

struct QuantizeOptions {
  std::string out;  // folder; made if missing, must be empty
  uint64_t file_bytes_max = uint64_t{5} << 30;  // a larger weight is alone
};

using QuantizeProgressFn = std::function<void(uint64_t done, uint64_t total)>;

// Writes `source` in another format, a few MiB at a time: memory does not grow
// with the model. config.json is written last, so that a broken run leaves
// nothing that loads. Everything else in the folder (tokenizer, chat template)
// is copied. `progress` (may be null) gets bytes written. Errors name the file;
// too little room on the disk is refused before anything is written.
absl::Status Quantize(const checkpoint::Checkpoint& source,
                      const Target& target,
                      const QuantizeOptions& options,
                      ThreadPool* pool,
                      const QuantizeProgressFn& progress);

}  // namespace conclave::quantize
