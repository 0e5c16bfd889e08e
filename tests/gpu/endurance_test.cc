// SPDX-License-Identifier: Apache-2.0
// Thousands of steps of sequences that come and go: nothing leaks, and the
// last reply is what the first was.
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "kernels/device.h"
#include "tests/testing/form.h"
#include "tests/unit/engine/kinds_of_sampling.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::KindsOfSampling;
using testing::ReplyPtr;

v1::Limits Room(int32_t sequences) {
  v1::Limits limits;
  limits.set_max_sequences(sequences);
  limits.set_kv_tokens(sequences * 256);
  return limits;
}

uint64_t FreeOnGpu() {
  const auto devices = kernels::ListCudaDevices(0);
  return devices.ok() ? (*devices)[0].memory_free_bytes : 0;
}

// Gauges follow a step after its replies.
void ExpectSoonZero(const EngineHouse& house, const std::string& gauge) {
  const absl::Time end = RealClock()->Now() + absl::Seconds(10);
  while (house.Metric(gauge) != 0 && RealClock()->Now() < end) {
    RealClock()->SleepUntil(RealClock()->Now() + absl::Milliseconds(10));
  }
  EXPECT_EQ(house.Metric(gauge), 0) << gauge;
}

class Endurance : public ::testing::TestWithParam<testing::Form> {};

TEST_P(Endurance, ThousandsOfStepsWithJoinsAndLeaves) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  // The loops of the twin take their time.
  const bool twin = GetParam().gpu == kernels::kHostDevice;
  const double steps = twin ? 60 : 10'000;
  const size_t sequences = twin ? 8 : 32;
  const v1::Limits limits = Room(static_cast<int32_t>(sequences));
  EngineHouse host(limits);
  std::vector<std::string> want;
  for (const GenerateRequest& r : KindsOfSampling()) {
    want.push_back(host.Run(r)->content);
  }
  EngineHouse gpu(limits,
                  nullptr,
                  nullptr,
                  nullptr,
                  GetParam().backend,
                  kernels::Activations::kF32,
                  GetParam().gpu);
  const std::vector<GenerateRequest> kinds = KindsOfSampling();
  std::deque<std::pair<size_t, ReplyPtr>> running;
  size_t asked = 0;
  uint64_t free_before = 0;
  while (gpu.Metric("conclave_steps_total") < steps || !running.empty()) {
    const bool more = gpu.Metric("conclave_steps_total") < steps;
    while (more && running.size() < sequences) {
      const size_t kind = asked++ % kinds.size();
      RequestId id{};
      ReplyPtr reply = gpu.Submit(kinds[kind], &id);
      ASSERT_NE(reply, nullptr);
      // Some leave early.
      if (asked % 13 == 0) {
        gpu.engine->Cancel(id);
      } else {
        running.emplace_back(kind, std::move(reply));
      }
    }
    const auto [kind, reply] = running.front();
    running.pop_front();
    reply->Wait();
    ASSERT_TRUE(reply->last.error.ok()) << reply->last.error;
    ASSERT_EQ(reply->content, want[kind]) << "request " << asked;
    // All sizes of steps have been recorded by then.
    if (free_before == 0 && asked > 8 * sequences) free_before = FreeOnGpu();
  }
  EXPECT_GT(asked, sequences);
  ExpectSoonZero(gpu, "conclave_kv_blocks_used");
  ExpectSoonZero(gpu, "conclave_running_sequences");
  EXPECT_TRUE(gpu.engine->Lost().ok());
  if (free_before == 0) return;
  constexpr uint64_t kOthers = 64 << 20;  // of the driver and of neighbours
  EXPECT_LE(free_before, FreeOnGpu() + kOthers);
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         Endurance,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace conclave
