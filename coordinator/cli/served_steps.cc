// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/served_steps.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "common/status_macros.h"
#include "coordinator/cli/made_up_shape.h"
#include "coordinator/cli/table.h"
#include "coordinator/model/step_sampler.h"
#include "kernels/device_sampling.h"

namespace conclave::cli {
namespace {

// Before the clock starts: what is recorded, joined or allocated once.
constexpr int32_t kWarmUp = 3;

int32_t Largest(const ServedOptions& o) {
  return *std::max_element(o.batches.begin(), o.batches.end());
}

int32_t TokensOf(const ServedOptions& o) { return o.context + o.steps; }

// Of all exchanges so far.
struct Exchanged {
  double seconds = 0;
  double sent = 0;
  double received = 0;
};

Exchanged ReadExchanged(const Metrics* metrics) {
  Exchanged out;
  if (metrics == nullptr) return out;
  const std::string text = metrics->Render();
  for (const auto& line : absl::StrSplit(text, '\n')) {
    const size_t space = line.find(' ');
    double value = 0;
    if (space == line.npos) continue;
    if (!absl::SimpleAtod(line.substr(space + 1), &value)) continue;
    const auto name = line.substr(0, space);
    if (name == "conclave_exchange_dispatch_seconds_sum" ||
        name == "conclave_exchange_wait_seconds_sum") {
      out.seconds += value;
    } else if (name == "conclave_exchange_sent_bytes_total") {
      out.sent = value;
    } else if (name == "conclave_exchange_received_bytes_total") {
      out.received = value;
    }
  }
  return out;
}

absl::Status In(const std::string& what, const absl::Status& status) {
  if (status.ok()) return status;
  return {status.code(), absl::StrCat(what, ": ", status.message())};
}

class Measurement {
 public:
  Measurement(model::Decoder* decoder, const ServedOptions& options)
      : decoder_(decoder), o_(options) {}

  absl::Status Prepare() {
    ASSIGN_OR_RETURN(sampler_, decoder_->MakeSampler(o_.vocab));
    return absl::OkStatus();
  }

  // The prompt of one sequence, in chunks.
  absl::Status Prompt(int32_t sequence, int32_t tokens) {
    const int32_t grid = limits::kGdnCellRows;
    const int32_t chunk = std::max(grid, o_.chunk_rows / grid * grid);
    for (int32_t at = 0; at < tokens; at += chunk) {
      ShapeSteps made(
          1, std::min(chunk, tokens - at), TokensOf(o_), o_.vocab, sequence);
      RETURN_IF_ERROR(
          decoder_->Run(made.At(at), made.tokens(), made.wanted(), nullptr)
              .status());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> Prompts() {
    const int32_t count = Largest(o_);
    RETURN_IF_ERROR(Prompt(0, std::min(o_.context, limits::kGdnCellRows)));
    const absl::Time begin = o_.clock->Now();
    for (int32_t s = 0; s < count; ++s) {
      RETURN_IF_ERROR(Prompt(s, o_.context));
    }
    return absl::ToDoubleSeconds(o_.clock->Now() - begin);
  }

  absl::StatusOr<ServedBatch> Decode(int32_t batch) {
    // States move on with each step; tokens are looked at behind the prompts.
    for (int32_t s = 0; s < std::min(moved_, batch); ++s) {
      RETURN_IF_ERROR(Prompt(s, o_.context));
    }
    moved_ = std::max(moved_, batch);
    ShapeSteps made(batch, 1, TokensOf(o_), o_.vocab);
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < kWarmUp; ++i) {
      RETURN_IF_ERROR(Step(&made, o_.context, /*look=*/i == 0));
      if (i == 0) tokens = next_;
    }
    std::vector<double> times;
    const Exchanged before = ReadExchanged(o_.metrics);
    for (int32_t r = 0; r < o_.repeats; ++r) {
      for (int32_t i = 0; i < o_.steps; ++i) {
        const absl::Time begin = o_.clock->Now();
        RETURN_IF_ERROR(Step(&made, o_.context + i, /*look=*/false));
        times.push_back(absl::ToDoubleSeconds(o_.clock->Now() - begin));
      }
    }
    const Exchanged after = ReadExchanged(o_.metrics);
    const auto count = static_cast<double>(times.size());
    ServedBatch out{
        .batch = batch,
        .step_s = Median(times),
        .exchange_s = (after.seconds - before.seconds) / count,
        .sent_bytes = (after.sent - before.sent) / count,
        .received_bytes = (after.received - before.received) / count,
        .tokens = std::move(tokens)};
    std::sort(times.begin(), times.end());
    out.tail_s = times[(times.size() * 9 + 9) / 10 - 1];
    return out;
  }

 private:
  // `look`: at the logits, too, where they are in host memory.
  absl::Status Step(ShapeSteps* made, int32_t position, bool look) {
    const kernels::StepBatch step = made->At(position);
    next_.resize(step.sequences.size());
    if (sampler_ == nullptr) {
      ASSIGN_OR_RETURN(
          const model::StepOutput out,
          decoder_->Run(step, made->tokens(), made->wanted(), nullptr));
      if (look) Choose(out.logits);
    } else {
      how_.resize(next_.size());
      for (size_t i = 0; i < how_.size(); ++i) {
        how_[i].counts_row = static_cast<int32_t>(i);
      }
      RETURN_IF_ERROR(sampler_->Run(step, made->tokens(), how_, next_));
    }
    if (std::find(next_.begin(), next_.end(), -1) == next_.end()) {
      return absl::OkStatus();
    }
    return absl::InternalError(
        "logits that are no numbers, so that routing means nothing; take "
        "another checkpoint, or activations f32");
  }

  // As a sampler does.
  void Choose(std::span<const float> logits) {
    const auto vocab = static_cast<size_t>(o_.vocab);
    for (size_t i = 0; i < next_.size(); ++i) {
      const std::span<const float> row = logits.subspan(i * vocab, vocab);
      const bool finite = std::all_of(
          row.begin(), row.end(), [](float x) { return std::isfinite(x); });
      const auto best = std::max_element(row.begin(), row.end());
      next_[i] = finite ? static_cast<int32_t>(best - row.begin()) : -1;
    }
  }

  model::Decoder* const decoder_;
  const ServedOptions& o_;
  std::unique_ptr<model::StepSampler> sampler_;  // null in host memory
  std::vector<kernels::DeviceSampling> how_;
  std::vector<int32_t> next_;
  int32_t moved_ = 0;  // sequences whose states are behind their prompts
};

}  // namespace

model::StateSizes ServedCaches(const ServedOptions& options) {
  const int32_t blocks =
      (TokensOf(options) + limits::kKvBlockTokens - 1) / limits::kKvBlockTokens;
  return {.kv_blocks = Largest(options) * blocks,
          .state_slots = Largest(options)};
}

absl::StatusOr<ServedFigures> MeasureServed(model::Decoder* decoder,
                                            const ServedOptions& options) {
  const auto tell = [&](const std::string& what) {
    if (options.tell != nullptr) options.tell(what);
  };
  Measurement measurement(decoder, options);
  RETURN_IF_ERROR(measurement.Prepare());
  ServedFigures out;
  out.prompts = Largest(options);
  const std::string prompts =
      absl::StrCat(out.prompts, " prompts of ", options.context, " tokens");
  tell(prompts);
  const absl::StatusOr<double> seconds = measurement.Prompts();
  RETURN_IF_ERROR(In(prompts, seconds.status()));
  out.prompt_tokens_s = options.context * out.prompts / *seconds;
  for (const int32_t batch : options.batches) {
    const std::string what = absl::StrCat("batch ", batch);
    tell(what);
    absl::StatusOr<ServedBatch> figures = measurement.Decode(batch);
    RETURN_IF_ERROR(In(what, figures.status()));
    out.batches.push_back(*figures);
  }
  return out;
}

}  // namespace conclave::cli
