// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "coordinator/model/decoder.h"

// Speed of a decoder in the steps that an engine would run: prompts in chunks,
// then steps of one row per sequence, whose tokens are chosen where the logits
// are. Made-up tokens; no HTTP, no text; no choice of tokens in host memory.
namespace conclave::cli {

struct ServedOptions {
  std::vector<int32_t> batches;  // sequences of a decode step
  int32_t context = 1;           // tokens of each before its first decode step
  int32_t steps = 1;             // of one measurement
  int32_t repeats = 1;
  int32_t chunk_rows = 0;  // of a prompt's step, at least limits::kGdnCellRows
  int32_t vocab = 1;
  Clock* clock = nullptr;
  const Metrics* metrics = nullptr;  // of the decoder's exchanges; may be null
  // What begins now, "batch 8"; may be null.
  std::function<void(const std::string&)> tell = nullptr;
};

// Of one size of steps.
struct ServedBatch {
  int32_t batch = 1;
  double step_s = 0;  // median of all steps
  double tail_s = 0;  // nine of ten steps are no slower
  // Per step, as the metrics of exchanges have them; 0 without.
  double exchange_s = 0;  // planning, handing over and waiting
  double sent_bytes = 0;
  double received_bytes = 0;
  // Likeliest after the first step, of each sequence: the same for all that
  // compute the same model, but for rounding.
  std::vector<int32_t> tokens = {};
};

struct ServedFigures {
  int32_t prompts = 0;         // the largest batch
  double prompt_tokens_s = 0;  // tokens per second, one prompt after the other
  std::vector<ServedBatch> batches;  // in the order asked
};

// Caches that the steps need: those of the largest batch, each sequence with
// whole blocks.
model::StateSizes ServedCaches(const ServedOptions& options);

// Each batch decodes from `context` on, in every repeat. Errors as
// Decoder::Run, with what was being measured; Internal: logits that are no
// numbers.
absl::StatusOr<ServedFigures> MeasureServed(model::Decoder* decoder,
                                            const ServedOptions& options);

}  // namespace conclave::cli
