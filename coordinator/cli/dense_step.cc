// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/dense_step.h"

#include <algorithm>
#include <memory>
#include <span>

#include "common/status_macros.h"
#include "coordinator/cli/made_up_steps.h"
#include "coordinator/cli/table.h"
#include "coordinator/experts/experts.h"

namespace conclave::cli {
namespace {

constexpr absl::Duration kEach = absl::Milliseconds(600);
constexpr size_t kStepsMin = 8, kStepsMax = 240;
constexpr int32_t kWarmUp = 3;

// Zeros from everywhere, and the time between Start and Finish.
class NoExperts final : public experts::Experts {
 public:
  explicit NoExperts(Clock* clock) : clock_(clock) {}

  void BeginStep() override { between_ = absl::ZeroDuration(); }
  absl::StatusOr<experts::Ticket> Start(
      LayerId /*layer*/,
      std::span<const float> /*x*/,
      const experts::Routing& /*routing*/) override {
    begin_ = clock_->Now();
    return experts::Ticket{};
  }
  absl::Status Finish(experts::Ticket /*ticket*/,
                      std::span<float> out) override {
    between_ += clock_->Now() - begin_;
    std::fill(out.begin(), out.end(), 0.0f);
    return absl::OkStatus();
  }

  // Of the last step, all layers.
  absl::Duration between() const { return between_; }

 private:
  Clock* const clock_;
  absl::Time begin_;
  absl::Duration between_;
};

}  // namespace

absl::StatusOr<std::vector<v1::MeasuredStep>> MeasureDenseSteps(
    const checkpoint::Checkpoint& checkpoint,
    const std::vector<int32_t>& sequences,
    ThreadPool* pool,
    Clock* clock) {
  NoExperts none(clock);
  MadeUpSteps::Options options;
  options.sequences = *std::max_element(sequences.begin(), sequences.end());
  options.tokens = static_cast<int32_t>(kStepsMax) + kWarmUp;
  ASSIGN_OR_RETURN(const auto steps,
                   MadeUpSteps::Create(checkpoint, &none, pool, options));
  std::vector<v1::MeasuredStep> out;
  for (const int32_t count : sequences) {
    std::vector<double> step_us, between_us;
    int32_t position = 0;
    for (; position < kWarmUp; ++position) {
      RETURN_IF_ERROR(steps->Run(count, 1, position));
    }
    const absl::Time until = clock->Now() + kEach;
    while (step_us.size() < kStepsMin ||
           (step_us.size() < kStepsMax && clock->Now() < until)) {
      const absl::Time begin = clock->Now();
      RETURN_IF_ERROR(steps->Run(count, 1, position++));
      step_us.push_back(absl::ToDoubleMicroseconds(clock->Now() - begin));
      between_us.push_back(absl::ToDoubleMicroseconds(none.between()));
    }
    v1::MeasuredStep& step = out.emplace_back();
    step.set_sequences(count);
    step.set_step_us(Median(std::move(step_us)));
    step.set_overlap_us(
        std::min(Median(std::move(between_us)), step.step_us()));
  }
  return out;
}

}  // namespace conclave::cli
