// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/measured_steps.h"

#include <algorithm>
#include <memory>
#include <span>

#include "common/status_macros.h"
#include "coordinator/cli/made_up_steps.h"
#include "coordinator/cli/table.h"
#include "coordinator/experts/experts.h"

namespace conclave::cli {
namespace {

constexpr absl::Duration kEach = absl::Seconds(1);
constexpr size_t kPairsMin = 6, kPairsMax = 120;
constexpr int32_t kWarmUp = 4;

// Zeros from everywhere; before it says so, it exchanges probes if told to.
class ProbeExperts final : public experts::Experts {
 public:
  explicit ProbeExperts(const StepOptions& options) : o_(options) {}

  void set_probing(bool probing) { probing_ = probing; }
  // From Start to Finish of the last step, all layers.
  absl::Duration between() const { return between_; }

  void BeginStep(int32_t /*micro_batches*/) override {
    between_ = absl::ZeroDuration();
  }

  absl::StatusOr<experts::Ticket> Start(
      LayerId /*layer*/,
      std::span<const float> /*x*/,
      const experts::Routing& routing) override {
    begin_ = o_.clock->Now();
    if (probing_) {
      const auto rows = static_cast<uint64_t>(routing.rows);
      RETURN_IF_ERROR(
          o_.probe->Start(o_.workers,
                          rows * static_cast<uint64_t>(o_.row_bytes),
                          rows * static_cast<uint64_t>(o_.reply_bytes)));
    }
    return experts::Ticket{};
  }

  absl::Status Finish(experts::Ticket /*ticket*/,
                      std::span<float> out) override {
    between_ += o_.clock->Now() - begin_;
    if (probing_) RETURN_IF_ERROR(o_.probe->Finish());
    std::fill(out.begin(), out.end(), 0.0f);
    return absl::OkStatus();
  }

 private:
  const StepOptions& o_;
  bool probing_ = false;
  absl::Time begin_;
  absl::Duration between_;
};

absl::StatusOr<StepFigures> MeasureOne(int32_t sequences,
                                       const StepOptions& o,
                                       ProbeExperts* experts,
                                       MadeUpSteps* steps) {
  const bool probes = o.probe != nullptr && !o.workers.empty();
  std::vector<double> alone, between, probed;
  int32_t position = 0;
  for (; position < kWarmUp; ++position) {
    experts->set_probing(probes && position % 2 == 1);
    RETURN_IF_ERROR(steps->Run(sequences, 1, position));
  }
  const absl::Time until = o.clock->Now() + kEach;
  while (alone.size() < kPairsMin ||
         (alone.size() < kPairsMax && o.clock->Now() < until)) {
    for (const bool probing : {false, true}) {
      if (probing && !probes) continue;
      experts->set_probing(probing);
      const absl::Time begin = o.clock->Now();
      RETURN_IF_ERROR(steps->Run(sequences, 1, position++));
      (probing ? probed : alone)
          .push_back(absl::ToDoubleMicroseconds(o.clock->Now() - begin));
      if (probing) continue;
      between.push_back(absl::ToDoubleMicroseconds(experts->between()));
    }
  }
  return StepFigures{.sequences = sequences,
                     .alone_us = Median(std::move(alone)),
                     .between_us = Median(std::move(between)),
                     .probed_us = Median(std::move(probed))};
}

}  // namespace

absl::StatusOr<std::vector<StepFigures>> MeasureSteps(
    const checkpoint::Checkpoint& checkpoint, const StepOptions& options) {
  ProbeExperts experts(options);
  MadeUpSteps::Options sizes;
  sizes.activations = options.activations;
  sizes.sequences =
      *std::max_element(options.sequences.begin(), options.sequences.end());
  sizes.tokens = static_cast<int32_t>(2 * kPairsMax) + kWarmUp;
  ASSIGN_OR_RETURN(
      const auto steps,
      MadeUpSteps::Create(checkpoint, &experts, options.pool, sizes));
  std::vector<StepFigures> out;
  for (const int32_t count : options.sequences) {
    ASSIGN_OR_RETURN(out.emplace_back(),
                     MeasureOne(count, options, &experts, steps.get()));
  }
  return out;
}

}  // namespace conclave::cli
