// SPDX-License-Identifier: Apache-2.0
#include "coordinator/experts/local_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/cluster/placement.h"
#include "coordinator/experts/remote_experts.h"
#include "tests/testing/golden.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/seeded.h"

namespace conclave::experts {
namespace {

using ::testing::HasSubstr;
using testing::TinyModel;

constexpr int32_t kTopK = 2, kHidden = 256, kWidth = 64;

// The routed experts of one layer, straight from the checkpoint, in double.
class Naive {
 public:
  explicit Naive(int32_t layer) {
    const std::string at = "layers." + std::to_string(layer) + ".mlp.experts.";
    gate_up_ = *TinyModel().ReadFloats(at + "gate_up_proj");
    down_ = *TinyModel().ReadFloats(at + "down_proj");
  }
  void Add(int32_t expert, float weight, const float* x, float* out) const {
    std::vector<double> h(kWidth);
    for (int32_t i = 0; i < kWidth; ++i) {
      const double gate = Dot(&gate_up_[Row(expert, i)], x);
      const double up = Dot(&gate_up_[Row(expert, kWidth + i)], x);
      h[i] = gate / (1 + std::exp(-gate)) * up;
    }
    for (int32_t o = 0; o < kHidden; ++o) {
      const float* w = &down_[(size_t{1} * expert * kHidden + o) * kWidth];
      double sum = 0;
      for (int32_t i = 0; i < kWidth; ++i) sum += w[i] * h[i];
      out[o] += static_cast<float>(weight * sum);
    }
  }

 private:
  static size_t Row(int32_t expert, int32_t row) {
    return (size_t{2} * expert * kWidth + row) * kHidden;
  }
  static double Dot(const float* w, const float* x) {
    double sum = 0;
    for (int32_t i = 0; i < kHidden; ++i) sum += double{w[i]} * x[i];
    return sum;
  }
  std::vector<float> gate_up_, down_;
};

struct Local {
  explicit Local(const v1::ClusterConfig& config) : pool(1) {
    const ExpertShape shape = TinyModel().config().expert_shape();
    placement = *cluster::MakePlacement(config, shape);
    shards = *LocalShards::Load(TinyModel(), placement, std::nullopt, nullptr);
    experts = *LocalExperts::Create(
        placement, shape, shards.get(), kernels::Backend::kCpuPlain, &pool);
  }
  ThreadPool pool;
  Placement placement;
  std::unique_ptr<LocalShards> shards;
  std::unique_ptr<LocalExperts> experts;
};

v1::ClusterConfig Columns() {
  v1::ClusterConfig config = testing::Workers({3, 1});
  config.mutable_placement()->set_split("columns");
  return config;
}

TEST(LocalExperts, ComputeTheWeightedSumOfTheChosenExperts) {
  testing::Seeded random(17);
  const std::vector<float> x = random.Floats(3 * kHidden);
  const std::vector<int32_t> expert = {0, 15, 7, 8, 15, 3};
  const std::vector<float> weight = {.75f, .25f, -1, 2, .5f, .5f};
  for (const bool columns : {false, true}) {
    Local local(columns ? Columns() : testing::Workers({1, 1, 1}));
    for (const int32_t layer : {0, 7}) {
      std::vector<float> want(x.size()), got(x.size(), 99);
      const Naive naive(layer);
      for (size_t i = 0; i < expert.size(); ++i) {
        const size_t row = i / kTopK * kHidden;
        naive.Add(expert[i], weight[i], &x[row], &want[row]);
      }
      local.experts->BeginStep(1);
      const auto ticket =
          local.experts->Start(LayerId{layer}, x, {3, kTopK, expert, weight});
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      ASSERT_TRUE(local.experts->Finish(*ticket, got).ok());
      EXPECT_LE(testing::RelativeError(got.data(), want.data(), got.size()),
                1e-6)
          << "layer " << layer;
    }
  }
}

TEST(LocalExperts, TicketsAreChecked) {
  Local local(testing::Workers({1}));
  const std::vector<float> x(kHidden), weight = {1, 1};
  const std::vector<int32_t> expert = {0, 1};
  const Routing routing{1, kTopK, expert, weight};
  std::vector<float> out(kHidden);
  EXPECT_EQ(local.experts->Finish(Ticket{}, out).code(),
            absl::StatusCode::kFailedPrecondition);
  const auto ticket = local.experts->Start(LayerId{0}, x, routing);
  ASSERT_TRUE(ticket.ok());
  EXPECT_EQ(local.experts->Start(LayerId{0}, x, routing).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(local.experts->Finish(*ticket, out).ok());
  EXPECT_EQ(local.experts->Finish(*ticket, out).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(local.experts->Start(LayerId{8}, x, routing).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(LocalShards, LoadOnlyWhatTheHolderHolds) {
  v1::ClusterConfig config = testing::Workers({1});
  config.mutable_placement()->set_coordinator_share(3);
  const ExpertShape shape = TinyModel().config().expert_shape();
  const Placement placement = *cluster::MakePlacement(config, shape);
  const auto own =
      LocalShards::Load(TinyModel(), placement, kCoordinator, nullptr);
  const auto all =
      LocalShards::Load(TinyModel(), placement, std::nullopt, nullptr);
  ASSERT_TRUE(own.ok() && all.ok());
  EXPECT_TRUE((*own)->Holds(ShardId{0}));
  EXPECT_FALSE((*own)->Holds(ShardId{1}));
  EXPECT_EQ((*own)->bytes() * 4, (*all)->bytes() * 3);

  ThreadPool pool(1);
  const auto local = LocalExperts::Create(
      placement, shape, own->get(), kernels::Backend::kCpuPlain, &pool);
  EXPECT_EQ(local.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(local.status().message()), HasSubstr("shard 1"));
  RemoteOptions options;
  options.placement = placement;
  options.shape = shape;
  const auto remote = RemoteExperts::Create(std::move(options));
  EXPECT_EQ(remote.status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace conclave::experts
