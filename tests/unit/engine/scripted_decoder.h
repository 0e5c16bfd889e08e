// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "coordinator/model/decoder.h"

namespace conclave::testing {

// What a test makes a decoder do, and sees of it; any thread.
struct Script {
  std::atomic<bool> nan{false};  // the first sequence's logits are no numbers
  std::atomic<int32_t> sampled{0};  // steps that chose tokens
  std::atomic<int32_t> counts{0};   // SetCounts
  std::atomic<int32_t> logits{0};   // steps that gave logits

  // Every step fails so; `lost`: for ever.
  void Fail(absl::Status status, absl::Status lost) {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = std::move(status);
    lost_ = std::move(lost);
  }
  absl::Status status() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return status_;
  }
  absl::Status lost() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return lost_;
  }

 private:
  mutable std::mutex mutex_;
  absl::Status status_, lost_;
};

// kernels/device_sampling.h in the plainest way.
inline int32_t ChoosePlainly(std::span<const float> all,
                             int32_t vocab_used,
                             const kernels::DeviceSampling& how,
                             const std::vector<int32_t>& counts) {
  std::vector<float> x(all.begin(), all.begin() + vocab_used);
  for (size_t i = 0; i < counts.size(); ++i) {
    const int32_t n = counts[i] < 0 ? -1 - counts[i] : counts[i];
    const auto factor = static_cast<float>(how.repetition_penalty);
    if (counts[i] != 0) x[i] = x[i] > 0 ? x[i] / factor : x[i] * factor;
    if (n == 0) continue;
    x[i] -=
        static_cast<float>(how.presence_penalty + how.frequency_penalty * n);
  }
  std::vector<int32_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
    return x[a] != x[b] ? x[a] > x[b] : a < b;
  });
  if (how.temperature <= 0) return ids[0];
  const float largest = x[ids[0]];
  const auto weight = [&](int32_t id) {
    return std::exp((double{x[id]} - largest) / how.temperature);
  };
  const auto sum = [&] {
    return std::accumulate(
        ids.begin(), ids.end(), 0.0, [&](double s, int32_t i) {
          return s + weight(i);
        });
  };
  if (how.top_k > 0) ids.resize(std::min<size_t>(ids.size(), how.top_k));
  const double total = sum();
  size_t kept = 0;
  for (double s = 0; kept < ids.size() && s < how.top_p * total; ++kept) {
    s += weight(ids[kept]);
  }
  if (how.top_p < 1) ids.resize(std::max<size_t>(kept, 1));
  std::erase_if(ids, [&](int32_t id) { return weight(id) < how.min_p; });
  double left = how.uniform * sum();
  std::sort(ids.begin(), ids.end());
  for (const int32_t id : ids) {
    left -= weight(id);
    if (left < 0) return id;
  }
  return ids.back();
}

// A decoder that also samples, around one that does not, as a script says.
class ScriptedDecoder final : public model::Decoder {
 public:
  ScriptedDecoder(std::unique_ptr<model::Decoder> real, Script* script)
      : real_(std::move(real)), script_(script) {}

  absl::StatusOr<model::StepOutput> Run(const kernels::StepBatch& batch,
                                        std::span<const int32_t> tokens,
                                        std::span<const int32_t> logit_rows,
                                        model::Probe* probe) override {
    if (!script_->status().ok()) return script_->status();
    ++script_->logits;
    return real_->Run(batch, tokens, logit_rows, probe);
  }
  absl::StatusOr<std::unique_ptr<model::StepSampler>> MakeSampler(
      int32_t vocab_used) override {
    return std::make_unique<Sampler>(real_.get(), script_, vocab_used);
  }
  absl::Status Health() const override { return script_->lost(); }
  uint64_t dense_bytes() const override { return real_->dense_bytes(); }
  uint64_t expert_bytes() const override { return 7; }
  model::StateBytes state_bytes() const override { return {1, 2}; }
  std::span<const float> GdnState(int32_t layer, int32_t slot) const override {
    return real_->GdnState(layer, slot);
  }
  std::span<const float> ConvState(int32_t layer, int32_t slot) const override {
    return real_->ConvState(layer, slot);
  }

 private:
  class Sampler final : public model::StepSampler {
   public:
    Sampler(model::Decoder* real, Script* script, int32_t vocab_used)
        : real_(real), script_(script), vocab_used_(vocab_used) {}

    absl::Status SetCounts(int32_t slot,
                           std::span<const int32_t> counts) override {
      EXPECT_EQ(counts.size(), static_cast<size_t>(vocab_used_));
      ++script_->counts;
      counts_[slot].assign(counts.begin(), counts.end());
      return absl::OkStatus();
    }
    absl::Status Run(const kernels::StepBatch& batch,
                     std::span<const int32_t> tokens,
                     std::span<const kernels::DeviceSampling> how,
                     std::span<int32_t> next) override {
      if (!script_->status().ok()) return script_->status();
      ++script_->sampled;
      std::vector<int32_t> all(tokens.size());
      std::iota(all.begin(), all.end(), 0);
      const auto output = real_->Run(batch, tokens, all, nullptr);
      if (!output.ok()) return output.status();
      const size_t vocab = output->logits.size() / all.size();
      for (size_t i = 0; i < next.size(); ++i) {
        const int32_t slot = batch.sequences[i].state_slots_out[0];
        EXPECT_EQ(how[i].counts_row, slot);
        const bool penalty = how[i].presence_penalty != 0 ||
                             how[i].frequency_penalty != 0 ||
                             how[i].repetition_penalty != 1;
        const std::vector<int32_t> none;
        next[i] = ChoosePlainly(output->logits.subspan(i * vocab, vocab),
                                vocab_used_,
                                how[i],
                                penalty ? counts_.at(slot) : none);
        if (penalty) {
          int32_t& count = counts_[slot][static_cast<size_t>(next[i])];
          count += count < 0 ? -1 : 1;
        }
      }
      if (script_->nan) next[0] = -1;
      return absl::OkStatus();
    }

   private:
    model::Decoder* real_;
    Script* script_;
    const int32_t vocab_used_;
    std::map<int32_t, std::vector<int32_t>> counts_;
  };

  std::unique_ptr<model::Decoder> real_;
  Script* script_;
};

}  // namespace conclave::testing
