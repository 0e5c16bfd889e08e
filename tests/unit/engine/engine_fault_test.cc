// SPDX-License-Identifier: Apache-2.0

// Experts that fail in the middle of replies.

#include <gtest/gtest.h>

#include <atomic>
#include <limits>

#include "tests/unit/engine/engine_fixture.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::FindGolden;
using testing::Greedy;
using testing::ReplyPtr;

// Local experts; while `broken`, Finish fails or writes garbage.
class FaultyExperts final : public experts::Experts {
 public:
  enum Fault { kNone, kUnavailable, kNotANumber };

  void BeginStep(int32_t micro_batches) override {
    model_.local->BeginStep(micro_batches);
  }
  absl::StatusOr<experts::Ticket> Start(
      LayerId layer,
      std::span<const float> x,
      const experts::Routing& routing) override {
    return model_.local->Start(layer, x, routing);
  }
  absl::Status Finish(experts::Ticket ticket, std::span<float> out) override {
    const absl::Status status = model_.local->Finish(ticket, out);
    if (fault == kUnavailable) {
      return absl::UnavailableError("worker w1: exchange: connection lost");
    }
    if (fault == kNotANumber) {
      out[0] = std::numeric_limits<float>::quiet_NaN();
    }
    return status;
  }

  std::atomic<Fault> fault{kNone};

 private:
  testing::SingleProcess model_{kernels::Backend::kCpu};
};

GenerateRequest Endless() {
  GenerateRequest request = Greedy(FindGolden("len2").ids, 1500);
  request.ignore_eos = true;
  return request;
}

class EngineFault : public ::testing::TestWithParam<FaultyExperts::Fault> {};

TEST_P(EngineFault, EndsTheStepsRequestsAndServesAgain) {
  FaultyExperts experts;
  EngineHouse house({}, &experts);
  const std::string want =
      house.Run(Greedy(FindGolden("len2").ids, 8))->content;
  const ReplyPtr a = house.Submit(Endless());
  const ReplyPtr b = house.Submit(Endless());
  a->WaitForEvents(2);
  b->WaitForEvents(2);
  experts.fault = GetParam();
  a->Wait();
  b->Wait();
  for (const ReplyPtr& reply : {a, b}) {
    if (GetParam() == FaultyExperts::kUnavailable) {
      EXPECT_EQ(reply->last.error.code(), absl::StatusCode::kUnavailable);
      EXPECT_EQ(reply->last.error.message(),
                "worker w1: exchange: connection lost");
    } else {
      EXPECT_EQ(reply->last.error.code(), absl::StatusCode::kInternal);
    }
  }
  experts.fault = FaultyExperts::kNone;
  EXPECT_EQ(house.Run(Greedy(FindGolden("len2").ids, 8))->content, want);
  EXPECT_EQ(house.Metric("conclave_requests_total{outcome=\"error\"}"), 2);
  // All blocks are back: this one needs every one of them.
  GenerateRequest all = Greedy(FindGolden("len2").ids, 4000);
  all.stop = {"a"};
  house.Run(std::move(all));
}
INSTANTIATE_TEST_SUITE_P(Faults,
                         EngineFault,
                         ::testing::Values(FaultyExperts::kUnavailable,
                                           FaultyExperts::kNotANumber));

TEST(EngineReady, RefusesWhileExpertsAreMissing) {
  std::atomic<bool> ready{true};
  v1::Limits limits;
  limits.set_max_sequences(1);
  EngineHouse house(limits, nullptr, [&ready] {
    return ready ? absl::OkStatus()
                 : absl::UnavailableError("worker w1 is not connected");
  });
  const ReplyPtr running = house.Submit(Endless());
  running->WaitForEvents(2);
  const ReplyPtr waiting = house.Submit(Endless());
  ready = false;
  waiting->Wait();
  EXPECT_EQ(waiting->last.error.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting->events(), 1);
  EXPECT_EQ(house.TrySubmit(Endless()).status().code(),
            absl::StatusCode::kUnavailable);
  EXPECT_FALSE(house.engine->Health().ok());
  ready = true;
  EXPECT_TRUE(house.engine->Health().ok());
  EXPECT_TRUE(house.TrySubmit(Endless()).ok());
}

}  // namespace
}  // namespace conclave
