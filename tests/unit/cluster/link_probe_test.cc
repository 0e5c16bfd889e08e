// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/link_probe.h"

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/simulated_clock.h"

namespace conclave::cluster {
namespace {

using ::testing::HasSubstr;

// Links with a round trip and a rate each way, on simulated time; the
// coordinator's end has a rate of its own.
class TimedTransport final : public transport::Transport {
 public:
  struct Link {
    double round_trip_s = 1e-3, out = 1e9, back = 5e8;
  };
  explicit TimedTransport(testing::SimulatedClock* clock) : clock_(clock) {}

  absl::Status Send(WorkerId to, Buffer frame) override {
    const auto probe = transport::DecodeProbe(frame.bytes());
    if (!probe.ok()) return probe.status();
    const Link& link = links[to];
    const auto out = static_cast<double>(probe->payload_bytes);
    const auto back = static_cast<double>(probe->reply_bytes);
    port_free_ = std::max(port_free_, clock_->Now()) +
                 absl::Seconds((out + back) / port);
    const absl::Time at =
        std::max(
            port_free_,
            clock_->Now() + absl::Seconds(out / link.out + back / link.back)) +
        absl::Seconds(link.round_trip_s);
    Buffer reply =
        answer ? answer(*probe)
               : transport::EncodeProbe({.tag = probe->tag,
                                         .payload_bytes = probe->reply_bytes,
                                         .reply_bytes = 0});
    arrivals_.emplace(at, std::pair(to, std::move(reply)));
    return absl::OkStatus();
  }

  absl::StatusOr<transport::Delivery> Receive(absl::Time deadline) override {
    if (arrivals_.empty() || arrivals_.begin()->first > deadline) {
      clock_->SleepUntil(deadline);
      return absl::DeadlineExceededError("nothing came");
    }
    auto first = arrivals_.extract(arrivals_.begin());
    clock_->SleepUntil(first.key());
    return transport::Delivery{first.mapped().first,
                               std::move(first.mapped().second)};
  }

  std::string PeerName(WorkerId worker) const override {
    return absl::StrCat("w", Index(worker));
  }

  std::map<WorkerId, Link> links;
  double port = 1e12;
  std::function<Buffer(const transport::ProbeFrame&)> answer;

 private:
  testing::SimulatedClock* clock_;
  absl::Time port_free_ = absl::InfinitePast();
  std::multimap<absl::Time, std::pair<WorkerId, Buffer>> arrivals_;
};

constexpr WorkerId kFirst{0}, kSecond{1};

class LinkProbeTest : public ::testing::Test {
 protected:
  testing::SimulatedClock clock_;
  TimedTransport transport_{&clock_};
  LinkProbe probe_{&transport_, &clock_, absl::Seconds(5)};
};

TEST_F(LinkProbeTest, FindsRoundTripAndBothRates) {
  transport_.links[kFirst] = {.round_trip_s = 3e-4, .out = 2e8, .back = 1e8};
  const auto speed = probe_.Measure(kFirst);
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_NEAR(speed->round_trip_s, 3e-4, 1e-6);
  EXPECT_NEAR(speed->out_bytes_per_s, 2e8, 1e6);
  EXPECT_NEAR(speed->back_bytes_per_s, 1e8, 1e6);
}

TEST_F(LinkProbeTest, AllAtOnceShowWhatTheyShare) {
  transport_.links[kFirst] = transport_.links[kSecond] = {};
  auto speed = probe_.MeasureAll({kFirst, kSecond});
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_NEAR(speed->out_bytes_per_s, 2e9, 2e7);  // a port each
  transport_.port = 1e9;
  speed = probe_.MeasureAll({kFirst, kSecond});
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_NEAR(speed->out_bytes_per_s, 1e9, 1e7);  // one for both
}

TEST_F(LinkProbeTest, SilenceNamesThePeerInTime) {
  transport_.links[kFirst] = {};
  transport_.links[kSecond] = {.round_trip_s = 60, .out = 1, .back = 1};
  const absl::Time begin = clock_.Now();
  const auto speed = probe_.MeasureAll({kFirst, kSecond});
  EXPECT_EQ(speed.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(speed.status().message()),
              AllOf(HasSubstr("w1"), Not(HasSubstr("w0"))));
  EXPECT_LE(clock_.Now() - begin, absl::Seconds(6));
}

// What an older worker does with a frame that it does not know.
TEST_F(LinkProbeTest, AWorkerWithoutProbesIsAVersionProblem) {
  transport_.links[kFirst] = {};
  transport_.answer = [](const transport::ProbeFrame& probe) {
    return transport::EncodeError({.tag = probe.tag,
                                   .code = absl::StatusCode::kInvalidArgument,
                                   .message = "unknown kind 4"});
  };
  const auto speed = probe_.Measure(kFirst);
  EXPECT_EQ(speed.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(speed.status().message()), HasSubstr("version"));
}

TEST_F(LinkProbeTest, LateAnswersOfEarlierProbesAreDropped) {
  transport_.links[kFirst] = {.round_trip_s = 6, .out = 1e9, .back = 1e9};
  EXPECT_FALSE(probe_.Measure(kFirst).ok());
  transport_.links[kFirst].round_trip_s = 1e-3;
  const auto speed = probe_.Measure(kFirst);
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_NEAR(speed->round_trip_s, 1e-3, 1e-6);
}

}  // namespace
}  // namespace conclave::cluster
