// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/checkpoint/checkpoint.h"
#include "common/thread_pool.h"
#include "coordinator/experts/experts.h"
#include "coordinator/model/decoder.h"

namespace conclave::testing {

// Runs sequences through a decoder without a scheduler. Up to 6 sequences of
// 1536 positions; their KV blocks interleave and descend, so that code that
// mixes them up is seen.
class ModelRunner {
 public:
  static constexpr int32_t kSequences = 6;
  static constexpr int32_t kBlocks = 24;  // per sequence

  ModelRunner(const checkpoint::Checkpoint& checkpoint,
              experts::Experts* experts,
              kernels::Backend backend,
              ThreadPool* pool,
              kernels::Activations activations = kernels::Activations::kF32,
              int32_t gpu = 0,
              const std::vector<bool>& routed_here = {},
              kernels::GdnDType gdn = kernels::GdnDType::kF32,
              const model::MicroBatchSettings& micro_batches = {});

  ModelRunner(std::unique_ptr<model::Decoder> decoder, int32_t vocab)
      : decoder_(std::move(decoder)), vocab_(vocab) {}

  // Sizes of the caches that this needs.
  static constexpr model::StateSizes Sizes() {
    return {.kv_blocks = kSequences * kBlocks, .state_slots = kSequences};
  }

  struct Sequence {
    int32_t position = 0;
    int32_t slot = 0;
    std::vector<int32_t> blocks;
  };
  Sequence Open(int32_t index) const;

  // New tokens of one sequence; prefill goes in cells on the 64-token grid.
  struct Feed {
    Sequence* sequence = nullptr;
    std::vector<int32_t> tokens;
    bool prefill = false;
    int32_t logits_from = 0;  // first row (of these tokens) with logits
  };
  // Logits of each feed, [rows from logits_from, vocab]; positions move on.
  absl::StatusOr<std::vector<std::vector<float>>> Step(
      std::vector<Feed> feeds, model::Probe* probe = nullptr);

  // Prefill of all tokens in steps of at most `chunk` tokens, a multiple of
  // 64; gives back the logits of the last row.
  absl::StatusOr<std::vector<float>> Prefill(Sequence* sequence,
                                             const std::vector<int32_t>& ids,
                                             int32_t chunk = 8192);
  absl::StatusOr<std::vector<int32_t>> Greedy(const std::vector<int32_t>& ids,
                                              int32_t count);

  const model::Decoder& decoder() const { return *decoder_; }
  model::Decoder& decoder() { return *decoder_; }
  // Final hidden rows of the last step.
  const std::vector<float>& hidden() const { return hidden_; }

 private:
  std::unique_ptr<model::Decoder> decoder_;
  int32_t vocab_;
  std::vector<float> hidden_;
};

int32_t ArgMax(std::span<const float> logits);

}  // namespace conclave::testing
