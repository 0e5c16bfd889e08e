// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "coordinator/schedule/request.h"
#include "kernels/device_sampling.h"

namespace conclave::sample {

// Chooses the tokens of one sequence. Order: bias, penalties, temperature,
// top-k, top-p, min-p, draw. Greedy (temperature 0) is the largest after bias
// and penalties, the lowest id of equals. The draw is a function of (seed,
// position) alone, so a sequence does not depend on what runs beside it.
class Sampler {
 public:
  // Ids from `vocab_used` on are never chosen. `prompt` counts for the
  // repetition penalty.
  Sampler(const SamplingParams& params,
          uint64_t seed,
          int32_t vocab_used,
          std::span<const int32_t> prompt);

  // logits: [vocab]; read only. position: of the new token.
  int32_t Sample(std::span<const float> logits, int32_t position);
  // The same choice as a device takes it, but for bias and counts_row.
  kernels::DeviceSampling OnDevice(int32_t position) const;
  // The token was taken.
  void Accept(int32_t token);

 private:
  void Penalise();
  int32_t Draw(int32_t position);

  const SamplingParams params_;
  const uint64_t seed_;
  const int32_t vocab_used_;
  absl::flat_hash_set<int32_t> prompt_;
  absl::flat_hash_map<int32_t, int32_t> generated_;  // id -> times
  std::vector<float> logits_;                        // scratch, [vocab_used]
  std::vector<int32_t> ids_;                         // scratch
};

// Whether tokens that were seen change logits.
bool HasPenalty(const SamplingParams& params);

// What a device knows of a sequence's tokens, [vocab_used]
// (kernels/device_sampling.h): -1 - n for those of the prompt, else n, the
// times that they were generated.
std::vector<int32_t> CountsOf(std::span<const int32_t> prompt,
                              std::span<const int32_t> generated,
                              int32_t vocab_used);

// Uniform in [0, 1): SplitMix64 of seed and position (Steele et al. 2014).
double UniformAt(uint64_t seed, uint64_t position);

struct Logprob {
  int32_t id = 0;
  float value = 0;
};

// Log-probabilities of the model itself, before bias, penalties and
// temperature: of `token`, then the `top` largest, descending (ties: lowest id
// first). logits: [vocab].
struct Logprobs {
  float chosen = 0;
  std::vector<Logprob> top;
};
Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int32_t top);

}  // namespace conclave::sample
