// SPDX-License-Identifier: Apache-2.0
// What is measured of a decoder that takes a known time.
#include "coordinator/cli/served_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "common/limits.h"
#include "coordinator/experts/exchange_metrics.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int32_t kVocab = 1000;

// A step takes a millisecond a row, every tenth step 50 more; an exchange of a
// third of a millisecond and 10 bytes a row is a part of it.
class TimedDecoder final : public model::Decoder {
 public:
  TimedDecoder(testing::SimulatedClock* clock,
               Metrics* metrics,
               model::StateSizes sizes)
      : clock_(clock), exchange_(metrics), sizes_(sizes) {}

  absl::StatusOr<model::StepOutput> Run(const kernels::StepBatch& batch,
                                        std::span<const int32_t> tokens,
                                        std::span<const int32_t> logit_rows,
                                        model::Probe*) override {
    ++steps_;
    if (steps_ == fails_at) return absl::UnavailableError("worker w1: gone");
    Check(batch, tokens);
    clock_->Advance(absl::Milliseconds(batch.rows + (steps_ % 10 ? 0 : 50)));
    exchange_.Dispatched(absl::Microseconds(batch.rows * 100));
    exchange_.Waited(absl::Microseconds(batch.rows * 200));
    exchange_.Sent(static_cast<size_t>(batch.rows) * 10);
    logits_.assign(logit_rows.size() * kVocab, logit);
    for (size_t i = 0; i < logit_rows.size(); ++i) {
      logits_[i * kVocab + static_cast<size_t>(steps_) + i] = logit + 1;
    }
    return model::StepOutput{.logits = logits_, .hidden = {}};
  }
  absl::StatusOr<std::unique_ptr<model::StepSampler>> MakeSampler(
      int32_t) override {
    return nullptr;
  }
  absl::Status Health() const override { return absl::OkStatus(); }
  uint64_t dense_bytes() const override { return 0; }
  uint64_t expert_bytes() const override { return 0; }
  model::StateBytes state_bytes() const override { return {}; }
  std::span<const float> GdnState(int32_t, int32_t) const override {
    return {};
  }
  std::span<const float> ConvState(int32_t, int32_t) const override {
    return {};
  }

  int32_t fails_at = -1;
  float logit = 0;
  std::vector<int32_t> prompt_rows;    // of each step of a prompt
  std::map<int32_t, int32_t> decoded;  // steps, by sequences
  std::set<int32_t> positions;         // of decode steps

 private:
  // What belongs to one sequence belongs to no other, and nothing is outside
  // the caches.
  void Check(const kernels::StepBatch& batch, std::span<const int32_t> tokens) {
    EXPECT_EQ(tokens.size(), static_cast<size_t>(batch.rows));
    for (const int32_t token : tokens) EXPECT_LT(token, kVocab);
    std::set<int32_t> slots;
    for (const kernels::SequenceRows& s : batch.sequences) {
      const int32_t slot = s.state_slots_out[0];
      EXPECT_TRUE(slots.insert(slot).second);
      EXPECT_LT(slot, sizes_.state_slots);
      EXPECT_EQ(s.state_slot_in, s.position == 0 ? -1 : slot);
      EXPECT_LE(s.position + s.rows,
                std::ssize(s.kv_blocks) * limits::kKvBlockTokens);
      for (const int32_t block : s.kv_blocks) {
        EXPECT_LT(block, sizes_.kv_blocks);
        EXPECT_EQ(owner_.try_emplace(block, slot).first->second, slot);
      }
      if (!s.cells.empty()) {
        EXPECT_EQ(s.position % limits::kGdnCellRows, 0);
        prompt_rows.push_back(s.rows);
      } else {
        positions.insert(s.position);
      }
    }
    if (batch.sequences[0].cells.empty()) {
      ++decoded[static_cast<int32_t>(batch.sequences.size())];
    }
  }

  testing::SimulatedClock* const clock_;
  experts::ExchangeMetrics exchange_;
  const model::StateSizes sizes_;
  int32_t steps_ = 0;
  std::map<int32_t, int32_t> owner_;  // slot, by block
  std::vector<float> logits_;
};

class ServedSteps : public ::testing::Test {
 protected:
  ServedSteps() {
    options_ = {.batches = {1, 4},
                .context = 200,
                .steps = 10,
                .repeats = 3,
                .chunk_rows = 150,
                .vocab = kVocab,
                .clock = &clock_,
                .metrics = &metrics_,
                .tell = [this](const std::string& s) { told_.push_back(s); }};
    decoder_ = std::make_unique<TimedDecoder>(
        &clock_, &metrics_, ServedCaches(options_));
  }

  testing::SimulatedClock clock_;
  Metrics metrics_;
  std::vector<std::string> told_;
  ServedOptions options_;
  std::unique_ptr<TimedDecoder> decoder_;
};

TEST_F(ServedSteps, AreTimedOneByOne) {
  const auto got = MeasureServed(decoder_.get(), options_);
  ASSERT_TRUE(got.ok()) << got.status();
  ASSERT_EQ(got->batches.size(), 2u);
  for (const ServedBatch& f : got->batches) {
    EXPECT_DOUBLE_EQ(f.step_s, 1e-3 * f.batch);
    EXPECT_DOUBLE_EQ(f.tail_s, 1e-3 * f.batch);
    EXPECT_NEAR(f.exchange_s, 3e-4 * f.batch, 1e-9);
    EXPECT_DOUBLE_EQ(f.sent_bytes, 10.0 * f.batch);
    EXPECT_EQ(f.received_bytes, 0);
    // Three to warm up.
    EXPECT_EQ(decoder_->decoded[f.batch], 3 + 30);
  }
  // One step and eight are prompts; three warm up, 30 are timed. Of the second
  // batch the first sequence has moved on: its prompt comes again.
  EXPECT_THAT(got->batches[0].tokens, ElementsAre(10));
  EXPECT_THAT(got->batches[1].tokens, ElementsAre(45, 46, 47, 48));
  EXPECT_EQ(got->batches[0].batch, 1);
  EXPECT_EQ(got->batches[1].batch, 4);
  EXPECT_EQ(*decoder_->positions.begin(), 200);
  EXPECT_EQ(*decoder_->positions.rbegin(), 209);
  EXPECT_THAT(told_,
              ElementsAre("4 prompts of 200 tokens", "batch 1", "batch 4"));
}

// Of one step, or of two, it is the slowest.
TEST_F(ServedSteps, NineOfTenAreNoSlowerThanTheTail) {
  options_.batches = {1};
  options_.repeats = 1;
  for (const int32_t steps : {1, 2, 9, 10, 11}) {
    options_.steps = steps;
    TimedDecoder decoder(&clock_, &metrics_, ServedCaches(options_));
    const auto got = MeasureServed(&decoder, options_);
    ASSERT_TRUE(got.ok()) << got.status();
    // Three steps of prompts and three to warm up came before; the fourth of
    // these is the tenth.
    const bool slow = steps >= 4 && steps < 10;
    EXPECT_DOUBLE_EQ(got->batches[0].tail_s, slow ? 0.051 : 0.001) << steps;
  }
}

// One to warm up, then of each sequence 128 and 72 rows: chunks are whole
// cells.
TEST_F(ServedSteps, BeginWithPromptsInChunks) {
  const auto got = MeasureServed(decoder_.get(), options_);
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_THAT(
      decoder_->prompt_rows,  // and the first again, for the second batch
      ElementsAre(64, 128, 72, 128, 72, 128, 72, 128, 72, 128, 72));
  EXPECT_EQ(got->prompts, 4);
  // Of steps 2 to 9 none is a tenth one.
  EXPECT_DOUBLE_EQ(got->prompt_tokens_s, 1000);
}

TEST_F(ServedSteps, AFaultSaysWhatWasMeasured) {
  decoder_->fails_at = 3;
  EXPECT_EQ(MeasureServed(decoder_.get(), options_).status(),
            absl::UnavailableError("4 prompts of 200 tokens: worker w1: gone"));
  decoder_->fails_at = 3 + 50;
  EXPECT_EQ(MeasureServed(decoder_.get(), options_).status(),
            absl::UnavailableError("batch 4: worker w1: gone"));
}

TEST_F(ServedSteps, RefuseLogitsThatAreNoNumbers) {
  decoder_->logit = NAN;
  const absl::Status status = MeasureServed(decoder_.get(), options_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("batch 1: logits that are no numbers"));
}

TEST_F(ServedSteps, TakeWholeBlocksOfEachSequence) {
  options_.context = limits::kKvBlockTokens;
  const model::StateSizes sizes = ServedCaches(options_);
  EXPECT_EQ(sizes.kv_blocks, 4 * 2);
  EXPECT_EQ(sizes.state_slots, 4);
}

}  // namespace
}  // namespace conclave::cli
