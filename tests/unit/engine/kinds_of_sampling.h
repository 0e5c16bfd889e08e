// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include "tests/testing/golden.h"
#include "tests/unit/engine/engine_fixture.h"

namespace conclave::testing {

// Eight requests of two prompts and different lengths: greedy, seeded in every
// way, and with penalties.
inline std::vector<GenerateRequest> KindsOfSampling() {
  std::vector<GenerateRequest> out;
  for (uint64_t i = 0; i < 8; ++i) {
    GenerateRequest r = Greedy(FindGolden(i % 2 == 0 ? "story" : "len65").ids,
                               24 + static_cast<int32_t>(i) * 5);
    r.ignore_eos = true;
    SamplingParams& s = r.sampling;
    s.temperature = i < 2 ? 0 : 0.4 + 0.2 * static_cast<double>(i);
    s.seed = 100 + i;
    if (i == 1) s.repetition_penalty = 1.3;
    if (i == 3) s.top_k = 20;
    if (i == 4) s.top_p = 0.9;
    if (i == 5) s.min_p = 0.05;
    if (i == 6) s.presence_penalty = s.frequency_penalty = 0.4;
    if (i == 7) s.top_k = 1;
    out.push_back(std::move(r));
  }
  return out;
}

}  // namespace conclave::testing
