// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"

namespace conclave::testing {

// Tokens of sequences with penalties, among the first `vocab_used`.
inline std::vector<int32_t> Sampled(ModelRunner& runner, int32_t vocab_used) {
  constexpr int32_t kCount = 4;
  auto sampler = runner.decoder().MakeSampler(vocab_used);
  EXPECT_TRUE(sampler.ok()) << sampler.status();
  std::vector<ModelRunner::Sequence> sequences;
  std::vector<int32_t> tokens(kCount), out;
  for (int32_t s = 0; s < kCount; ++s) {
    sequences.push_back(runner.Open(s));
    const auto& ids = FindGolden("len63").ids;
    const auto last =
        runner.Prefill(&sequences[s], {ids.begin(), ids.begin() + 20 + 11 * s});
    EXPECT_TRUE(last.ok()) << last.status();
    tokens[s] = ArgMax(std::span(*last).first(vocab_used));
    const std::vector<int32_t> counts(vocab_used, 0);
    EXPECT_TRUE((*sampler)->SetCounts(sequences[s].slot, counts).ok());
  }
  for (int32_t step = 0; step < 12; ++step) {
    std::vector<kernels::SequenceRows> rows;
    std::vector<kernels::DeviceSampling> how;
    std::vector<int32_t> fed;
    // Sequences change lanes: the first ones leave for a while.
    for (int32_t s = step % 3; s < kCount; ++s) {
      rows.push_back(
          {.row_begin = static_cast<int32_t>(rows.size()),
           .rows = 1,
           .position = sequences[s].position++,
           .cells = {},
           .state_slot_in = sequences[s].slot,
           .state_slots_out = std::span<const int32_t>(&sequences[s].slot, 1),
           .kv_blocks = sequences[s].blocks});
      how.push_back({.presence_penalty = 0.3f,
                     .frequency_penalty = 1.5f,
                     .counts_row = sequences[s].slot});
      fed.push_back(tokens[s]);
    }
    std::vector<int32_t> next(fed.size());
    const absl::Status status = (*sampler)->Run(
        {rows, static_cast<int32_t>(rows.size())}, fed, how, next);
    EXPECT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < next.size(); ++i) {
      tokens[step % 3 + i] = next[i];
    }
    out.insert(out.end(), next.begin(), next.end());
  }
  return out;
}

}  // namespace conclave::testing
