// SPDX-License-Identifier: Apache-2.0
#include "worker/expert_runner.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "common/transport/memory_transport.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/moe.h"
#include "tests/testing/seeded.h"
#include "tests/unit/worker/assignments.h"

namespace conclave::worker {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kGeneration = 42;
constexpr WorkerId kWorker{0};

// One worker behind a MemoryTransport that holds two shards: experts [0, e/2)
// whole and the upper half of the columns of the rest.
class ExpertRunnerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = *checkpoint::Checkpoint::Open(testing::kTinyModel);
    const checkpoint::ModelConfig& config = checkpoint_->config();
    const int32_t experts = config.num_experts;
    const int32_t width = config.moe_intermediate_size;
    shards_ = {
        testing::MakeShard(config, 1, 0, experts / 2, 0, width),
        testing::MakeShard(config, 3, experts / 2, experts, width / 2, width)};
    ASSERT_TRUE(store_
                    .Assign(testing::MakeAssign(config, kGeneration, shards_),
                            [](const auto&) {})
                    .ok());
    transport_.AddWorker(
        kWorker, "w0", [this](auto frame) { return runner_.Handle(frame); });
  }

  struct Work {
    std::vector<int32_t> slice, row;
    std::vector<float> weight;
  };
  // Uneven: some slices get no rows, some rows no slices.
  Work RandomWork(uint32_t seed, int32_t slices, int32_t rows) {
    testing::Seeded seeded(seed);
    Work work;
    for (int32_t slice = 0; slice < slices; ++slice) {
      if (seeded.Int(3) == 0) continue;
      for (int32_t row = 0; row < rows; ++row) {
        if (seeded.Int(4) != 0) continue;
        work.slice.push_back(slice);
        work.row.push_back(row);
        work.weight.push_back(static_cast<float>(seeded.Real()));
      }
    }
    return work;
  }

  // What the kernel says, from weights that were loaded apart.
  std::vector<float> Direct(const Shard& shard,
                            int32_t layer,
                            const Work& work,
                            const std::vector<float>& x,
                            int32_t rows) {
    const auto weights = *checkpoint::LoadShard(*checkpoint_, shard, nullptr);
    const auto& from = weights.layers[static_cast<size_t>(layer)];
    const auto view = kernels::ViewOf(from.Stacked());
    std::vector<float> out(x.size());
    kernels::Workspace workspace;
    EXPECT_TRUE(kernels::ExpertFfn({.backend = kernels::Backend::kCpu,
                                    .pool = &pool_,
                                    .workspace = &workspace},
                                   view,
                                   {work.slice, work.row, work.weight},
                                   x,
                                   rows,
                                   out)
                    .ok());
    return out;
  }

  // Points to its arguments.
  transport::ExpertRequest Request(int32_t layer,
                                   const std::vector<const Work*>& work,
                                   const std::vector<float>& x,
                                   int32_t rows) {
    transport::ExpertRequest request;
    request.tag = {.generation = kGeneration,
                   .step = 7,
                   .layer = static_cast<LayerId>(layer)};
    request.row_count = rows;
    request.hidden = checkpoint_->config().hidden_size;
    for (size_t i = 0; i < work.size(); ++i) {
      request.shards.push_back(
          {shards_[i].id, work[i]->slice, work[i]->row, work[i]->weight});
    }
    request.x = std::as_bytes(std::span(x));
    return request;
  }

  Buffer Exchange(Buffer frame) {
    EXPECT_TRUE(transport_.Send(kWorker, std::move(frame)).ok());
    auto delivery = transport_.Receive(absl::InfiniteFuture());
    EXPECT_TRUE(delivery.ok() && delivery->frame.ok());
    return std::move(*delivery->frame);
  }

  transport::ErrorReply Error(Buffer frame) {
    const Buffer reply = Exchange(std::move(frame));
    auto error = transport::DecodeError(reply.bytes());
    EXPECT_TRUE(error.ok()) << error.status();
    return error.ok() ? *error : transport::ErrorReply{};
  }

  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::vector<Shard> shards_;
  ThreadPool pool_{2, 0};
  ExpertStore store_{{}};
  HostShardSums sums_{kernels::Backend::kCpu, &pool_};
  ExpertRunner runner_{"w0", &store_, &sums_};
  transport::MemoryTransport transport_;
};

TEST_F(ExpertRunnerTest, SameBitsAsTheKernel) {
  const int32_t hidden = checkpoint_->config().hidden_size;
  const int32_t layers = checkpoint_->config().num_hidden_layers;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    const int32_t rows = 1 + static_cast<int32_t>(seed) * 5;
    const int32_t layer = static_cast<int32_t>(seed) % layers;
    const std::vector<float> x = testing::Seeded(seed + 99).Floats(
        static_cast<size_t>(rows) * static_cast<size_t>(hidden));
    std::vector<Work> work;
    for (const Shard& shard : shards_) {
      const auto slices = static_cast<int32_t>(shard.slices.size()) / layers;
      work.push_back(RandomWork(seed * 2 + work.size(), slices, rows));
    }
    const Buffer frame = Exchange(transport::EncodeRequest(
        Request(layer, {&work[0], &work[1]}, x, rows)));
    const auto reply = transport::DecodeReply(frame.bytes());
    ASSERT_TRUE(reply.ok()) << reply.status();
    EXPECT_EQ(reply->tag.step, 7u);
    EXPECT_EQ(reply->tag.layer, static_cast<LayerId>(layer));
    ASSERT_EQ(reply->shards.size(), 2u);
    for (size_t i = 0; i < 2; ++i) {
      EXPECT_EQ(reply->shards[i].shard, shards_[i].id);
      const auto expected = Direct(shards_[i], layer, work[i], x, rows);
      std::vector<int32_t> distinct = work[i].row;
      std::sort(distinct.begin(), distinct.end());
      distinct.erase(std::unique(distinct.begin(), distinct.end()),
                     distinct.end());
      ASSERT_TRUE(std::ranges::equal(distinct, reply->shards[i].row));
      for (size_t r = 0; r < distinct.size(); ++r) {
        const size_t bytes = static_cast<size_t>(hidden) * sizeof(float);
        EXPECT_EQ(std::memcmp(reply->shards[i].sum.data() + r * bytes,
                              expected.data() + distinct[r] * hidden,
                              bytes),
                  0)
            << "shard " << i << " row " << distinct[r];
      }
    }
  }
}

TEST_F(ExpertRunnerTest, Bf16RowsBothWays) {
  const int32_t hidden = checkpoint_->config().hidden_size;
  const int32_t rows = 3;
  std::vector<float> x = testing::Seeded(5).Floats(static_cast<size_t>(rows) *
                                                   static_cast<size_t>(hidden));
  std::vector<uint16_t> narrow;
  for (float& value : x) {
    const uint32_t bits = std::bit_cast<uint32_t>(value) & 0xffff0000u;
    value = std::bit_cast<float>(bits);
    narrow.push_back(static_cast<uint16_t>(bits >> 16));
  }
  const Work work = {{0, 0, 1}, {0, 2, 0}, {0.5f, 1.f, 0.5f}};
  auto request = Request(2, {&work}, x, rows);
  request.dtype = request.reply_dtype = DType::kBF16;
  request.x = std::as_bytes(std::span(narrow));
  const Buffer frame = Exchange(transport::EncodeRequest(request));
  const auto reply = transport::DecodeReply(frame.bytes());
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->dtype, DType::kBF16);
  const auto expected = Direct(shards_[0], 2, work, x, rows);
  const auto* sums =
      reinterpret_cast<const uint16_t*>(reply->shards[0].sum.data());
  for (size_t r = 0; r < 2; ++r) {
    for (int32_t c = 0; c < hidden; ++c) {
      const float got = std::bit_cast<float>(
          static_cast<uint32_t>(sums[r * hidden + c]) << 16);
      const float want = expected[2 * r * hidden + c];
      EXPECT_LE(std::abs(got - want), std::abs(want) / 256);
    }
  }
}

// Whatever the worker holds, and of any generation.
TEST_F(ExpertRunnerTest, ProbesComeBackAsLongAsTheyAsk) {
  for (const uint64_t bytes : {0, 8, 4096, 1 << 20}) {
    const transport::FrameTag tag = {
        .generation = 9, .step = bytes, .layer = LayerId{0}};
    ASSERT_TRUE(
        transport_
            .Send(kWorker,
                  transport::EncodeProbe(
                      {.tag = tag, .payload_bytes = 16, .reply_bytes = bytes}))
            .ok());
    const auto delivery = transport_.Receive(absl::InfiniteFuture());
    ASSERT_TRUE(delivery.ok() && delivery->frame.ok());
    const auto answer = transport::DecodeProbe(delivery->frame->bytes());
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->tag, tag);
    EXPECT_EQ(answer->payload_bytes, bytes);
    EXPECT_EQ(answer->reply_bytes, 0u);
  }
}

TEST_F(ExpertRunnerTest, WhatIsWrongIsToldByName) {
  const int32_t hidden = checkpoint_->config().hidden_size;
  const std::vector<float> x(static_cast<size_t>(hidden), 1.f);
  const Work work = {{0}, {0}, {1.f}};
  auto request = Request(0, {&work}, x, 1);
  request.tag.generation = 41;
  auto error = Error(transport::EncodeRequest(request));
  EXPECT_EQ(error.code, absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(error.tag, request.tag);
  EXPECT_THAT(error.message, HasSubstr("worker w0: "));
  EXPECT_THAT(error.message, HasSubstr("generation 42"));

  request = Request(0, {&work}, x, 1);
  request.shards[0].shard = ShardId{2};
  error = Error(transport::EncodeRequest(request));
  EXPECT_THAT(error.message, HasSubstr("shard 2 is not held"));

  request = Request(checkpoint_->config().num_hidden_layers, {&work}, x, 1);
  EXPECT_THAT(Error(transport::EncodeRequest(request)).message,
              HasSubstr("layers"));

  const Work beyond = {{checkpoint_->config().num_experts / 2}, {0}, {1.f}};
  request = Request(0, {&beyond}, x, 1);
  EXPECT_THAT(Error(transport::EncodeRequest(request)).message,
              HasSubstr("slice"));

  const std::vector<float> wide(static_cast<size_t>(hidden) + 4, 1.f);
  request = Request(0, {&work}, wide, 1);
  request.hidden = hidden + 4;
  EXPECT_THAT(Error(transport::EncodeRequest(request)).message,
              HasSubstr("width"));

  EXPECT_THAT(Error(Buffer(8)).message, HasSubstr("too short"));
  EXPECT_THAT(Error(Buffer()).message, HasSubstr("too short"));

  ExpertStore empty({});
  ExpertRunner idle("w9", &empty, &sums_);
  const Buffer frame = transport::EncodeRequest(Request(0, {&work}, x, 1));
  const Buffer reply = idle.Handle(frame.bytes());
  EXPECT_THAT(transport::DecodeError(reply.bytes())->message,
              HasSubstr("worker w9: no experts are assigned"));
}

}  // namespace
}  // namespace conclave::worker
