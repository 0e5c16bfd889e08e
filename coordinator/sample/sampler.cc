// SPDX-License-Identifier: Apache-2.0
#include "coordinator/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace conclave::sample {
namespace {

uint64_t SplitMix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) -
                              logits.begin());
}

}  // namespace

double UniformAt(uint64_t seed, uint64_t position) {
  const uint64_t bits = SplitMix(SplitMix(seed) ^ position);
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

Sampler::Sampler(const SamplingParams& params,
                 uint64_t seed,
                 int32_t vocab_used,
                 std::span<const int32_t> prompt)
    : params_(params), seed_(seed), vocab_used_(vocab_used) {
  if (params_.repetition_penalty != 1.0) {
    prompt_.insert(prompt.begin(), prompt.end());
  }
}

kernels::DeviceSampling Sampler::OnDevice(int32_t position) const {
  return {.temperature = params_.top_k == 1 ? 0 : params_.temperature,
          .top_p = params_.top_p,
          .min_p = params_.min_p,
          .presence_penalty = params_.presence_penalty,
          .frequency_penalty = params_.frequency_penalty,
          .repetition_penalty = params_.repetition_penalty,
          .uniform = UniformAt(seed_, static_cast<uint64_t>(position)),
          .top_k = params_.top_k};
}

bool HasPenalty(const SamplingParams& params) {
  return params.presence_penalty != 0 || params.frequency_penalty != 0 ||
         params.repetition_penalty != 1.0;
}

std::vector<int32_t> CountsOf(std::span<const int32_t> prompt,
                              std::span<const int32_t> generated,
                              int32_t vocab_used) {
  std::vector<int32_t> out(static_cast<size_t>(vocab_used));
  for (const int32_t id : prompt) {
    if (id < vocab_used) out[static_cast<size_t>(id)] = -1;
  }
  for (const int32_t id : generated) {
    if (id >= vocab_used) continue;
    int32_t& count = out[static_cast<size_t>(id)];
    count += count < 0 ? -1 : 1;
  }
  return out;
}

void Sampler::Accept(int32_t token) { ++generated_[token]; }

void Sampler::Penalise() {
  for (const auto& [id, bias] : params_.logit_bias) {
    if (id < vocab_used_) logits_[id] += bias;
  }
  if (params_.repetition_penalty != 1.0) {
    const auto factor = static_cast<float>(params_.repetition_penalty);
    const auto repeat = [&](int32_t id) {
      if (id >= vocab_used_) return;
      float& x = logits_[id];
      x = x > 0 ? x / factor : x * factor;
    };
    for (const int32_t id : prompt_) repeat(id);
    for (const auto& [id, times] : generated_) {
      if (!prompt_.contains(id)) repeat(id);
    }
  }
  if (params_.presence_penalty == 0 && params_.frequency_penalty == 0) return;
  for (const auto& [id, times] : generated_) {
    if (id >= vocab_used_) continue;
    logits_[id] -= static_cast<float>(params_.presence_penalty +
                                      params_.frequency_penalty * times);
  }
}

int32_t Sampler::Sample(std::span<const float> logits, int32_t position) {
  logits_.assign(logits.begin(), logits.begin() + vocab_used_);
  Penalise();
  if (params_.temperature <= 0 || params_.top_k == 1) return ArgMax(logits_);
  return Draw(position);
}

// Candidates are sorted only as far as they are needed: top-k by a partial
// sort, top-p by growing prefixes.
int32_t Sampler::Draw(int32_t position) {
  const size_t vocab = logits_.size();
  ids_.resize(vocab);
  std::iota(ids_.begin(), ids_.end(), 0);
  const auto before = [&](int32_t a, int32_t b) {
    return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
  };
  size_t count = vocab;
  if (params_.top_k > 0) {
    count = std::min<size_t>(vocab, static_cast<size_t>(params_.top_k));
    std::nth_element(ids_.begin(),
                     ids_.begin() + static_cast<ptrdiff_t>(count - 1),
                     ids_.end(),
                     before);
  }
  const auto end = [&](size_t n) {
    return ids_.begin() + static_cast<ptrdiff_t>(n);
  };
  const float largest =
      logits_[*std::min_element(ids_.begin(), end(count), before)];
  const double scale = 1.0 / params_.temperature;
  const auto weight = [&](int32_t id) {
    return std::exp((static_cast<double>(logits_[id]) - largest) * scale);
  };
  double total = 0;
  for (size_t i = 0; i < count; ++i) total += weight(ids_[i]);
  if (params_.top_p < 1.0) {
    // Sort a prefix, and a longer one until it holds enough.
    size_t sorted = 0;
    double sum = 0;
    size_t kept = 0;
    for (size_t want = 64; sum < params_.top_p * total && kept < count;
         want *= 4) {
      const size_t to = std::min(count, want);
      std::partial_sort(end(sorted), end(to), end(count), before);
      sorted = to;
      while (kept < sorted && sum < params_.top_p * total) {
        sum += weight(ids_[kept++]);
      }
    }
    count = std::max<size_t>(kept, 1);
    total = sum;
  }
  if (params_.min_p > 0) {
    const double least = params_.min_p;  // times the largest weight, which is 1
    count = static_cast<size_t>(
        std::partition(ids_.begin(),
                       end(count),
                       [&](int32_t id) { return weight(id) >= least; }) -
        ids_.begin());
    total = 0;
    for (size_t i = 0; i < count; ++i) total += weight(ids_[i]);
  }
  // In ascending ids, so that the draw does not depend on how they were sorted.
  std::sort(ids_.begin(), end(count));
  double left = UniformAt(seed_, static_cast<uint64_t>(position)) * total;
  for (size_t i = 0; i < count; ++i) {
    left -= weight(ids_[i]);
    if (left < 0) return ids_[i];
  }
  return ids_[count - 1];
}

Logprobs LogprobsOf(std::span<const float> logits, int32_t token, int32_t top) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(double{x} - largest);
  const double log_sum = largest + std::log(sum);
  const auto value = [&](int32_t id) {
    return static_cast<float>(logits[static_cast<size_t>(id)] - log_sum);
  };
  Logprobs out{.chosen = value(token), .top = {}};
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto n = std::min<ptrdiff_t>(top, std::ssize(ids));
  std::partial_sort(
      ids.begin(), ids.begin() + n, ids.end(), [&](int32_t a, int32_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
      });
  for (ptrdiff_t i = 0; i < n; ++i) out.top.push_back({ids[i], value(ids[i])});
  return out;
}

}  // namespace conclave::sample
