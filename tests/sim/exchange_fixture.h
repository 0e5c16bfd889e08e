// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/transport/wire.h"
#include "coordinator/experts/local_experts.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/testing/golden.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/scripted_transport.h"
#include "tests/testing/seeded.h"

namespace conclave::experts {

inline constexpr kernels::Backend kBackend = kernels::Backend::kCpuPlain;
inline constexpr WorkerId kW0{0}, kW1{1};
inline constexpr absl::Duration kDeadline = absl::Milliseconds(2500);
inline constexpr int32_t kRows = 9, kTopK = 4;

// Two real workers behind a transport that does what the test says, and the
// same experts in this process.
class ExchangeFixture : public ::testing::Test {
 protected:
  ExchangeFixture()
      : pool_(1),
        cluster_(Config(), kBackend, &pool_),
        transport_(&clock_),
        hidden_(testing::TinyModel().config().hidden_size) {
    testing::Seeded random(11);
    x_ = random.Floats(static_cast<size_t>(kRows) * hidden_);
    for (int32_t row = 0; row < kRows; ++row) {
      // Experts 0 .. 7 lie on w0, 8 .. 15 on w1; some rows need w0 alone.
      const int32_t stride = row % 3 == 0 ? 1 : 4;
      for (int32_t k = 0; k < kTopK; ++k) {
        expert_.push_back((row + stride * k) % 16);
        weight_.push_back(static_cast<float>(random.Real()));
      }
    }
    for (const WorkerId worker : {kW0, kW1}) {
      const int32_t i = Index(worker);
      transport_.AddWorker(
          worker, i == 0 ? "w0 (a:1)" : "w1 (b:2)", cluster_.handler(i));
    }
    RemoteOptions options = cluster_.remote_options();
    options.transport = &transport_;
    options.clock = &clock_;
    options.deadline = kDeadline;
    options.metrics = &metrics_;
    remote_ = *RemoteExperts::Create(std::move(options));
    shards_ = *LocalShards::Load(
        testing::TinyModel(), cluster_.placement(), std::nullopt, nullptr);
    local_ = *LocalExperts::Create(cluster_.placement(),
                                   testing::TinyModel().config().expert_shape(),
                                   shards_.get(),
                                   kBackend,
                                   &pool_);
  }

  static v1::ClusterConfig Config() { return testing::Workers({1, 1}); }

  absl::StatusOr<std::vector<float>> Layer(Experts* experts, int32_t layer) {
    std::vector<float> out(x_.size());
    const auto ticket =
        experts->Start(LayerId{layer}, x_, {kRows, kTopK, expert_, weight_});
    if (!ticket.ok()) return ticket.status();
    const absl::Status status = experts->Finish(*ticket, out);
    if (!status.ok()) return status;
    return out;
  }

  std::vector<float> Right(int32_t layer) {
    local_->BeginStep(1);
    return *Layer(local_.get(), layer);
  }

  // One step of one layer.
  absl::StatusOr<std::vector<float>> Step(int32_t layer = 3) {
    remote_->BeginStep(1);
    return Layer(remote_.get(), layer);
  }

  void ExpectRight(int32_t layer = 3) {
    const auto out = Step(layer);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(*out, Right(layer));
  }

  // The step fails with that code, names w1 alone, and the next one is right.
  void ExpectFailureOfW1(absl::StatusCode code, const std::string& what) {
    const auto out = Step();
    EXPECT_EQ(out.status().code(), code) << out.status();
    using ::testing::AllOf, ::testing::HasSubstr, ::testing::Not;
    EXPECT_THAT(std::string(out.status().message()),
                AllOf(HasSubstr("worker w1 (b:2): exchange, layer 3"),
                      HasSubstr(what),
                      Not(HasSubstr("w0"))));
    ExpectRight();
  }

  // A script that delivers w1's reply after it was changed.
  testing::ScriptedTransport::Script Changed(
      std::function<void(transport::ExpertReply*)> change) {
    return [this, change](Buffer frame) {
      transport::ExpertReply reply = *transport::DecodeReply(frame.bytes());
      change(&reply);
      transport_.Deliver(kW1, transport::EncodeReply(reply));
    };
  }

  Metrics metrics_;
  ThreadPool pool_;
  testing::SimulatedClock clock_;
  testing::MemoryCluster cluster_;
  testing::ScriptedTransport transport_;
  int32_t hidden_;
  std::vector<float> x_;
  std::vector<int32_t> expert_;
  std::vector<float> weight_;
  std::unique_ptr<RemoteExperts> remote_;
  std::unique_ptr<LocalShards> shards_;
  std::unique_ptr<LocalExperts> local_;
};

}  // namespace conclave::experts
