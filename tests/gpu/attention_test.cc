// SPDX-License-Identifier: Apache-2.0
// Gated attention on the GPU beside the plain twin on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/device_attention.h"
#include "tests/gpu/attention_world.h"
#include "tests/gpu/device_values.h"
#include "tests/gpu/require_gpu.h"

namespace conclave::kernels {
namespace {

using Part = WorldPart;
using World = AttentionWorld;

struct Case {
  int32_t heads = 0;
  KvDType dtype = KvDType::kBF16;
};

class GpuAttention : public ::testing::TestWithParam<Case> {
 protected:
  void ExpectParity(const std::vector<Part>& parts, bool y_bf16) {
    World world(GetParam().heads, GetParam().dtype, parts);
    const TestStep step(world.queue(), world.sequences());
    const auto got = world.OnDevice(step.step, y_bf16);
    const double tolerance = ToleranceOf(GetParam().dtype);
    // Rounding y to bf16 moves it by up to 2^-9.
    world.ExpectSame(
        got, world.OnHost(), y_bf16 ? std::max(tolerance, 4e-3) : tolerance);
    world.ExpectCacheAppended();
  }
};

TEST_P(GpuAttention, DecodesBatches) {
  CONCLAVE_REQUIRE_GPU();
  constexpr int32_t kContexts[] = {3000, 0, 1, 31, 32, 33, 63, 64, 65, 500};
  for (const int32_t batch : {1, 3, 8, 33}) {
    std::vector<Part> parts;
    for (int32_t i = 0; i < batch; ++i) {
      // Long ones cost the CPU: one in a batch.
      const int32_t context = kContexts[i % 10];
      parts.push_back({1, i > 0 && context == 3000 ? 129 : context});
    }
    SCOPED_TRACE(batch);
    ExpectParity(parts, batch % 2 == 0);
  }
}

// Contexts that are not split, and more rows than the device has processors.
TEST_P(GpuAttention, DecodesShortContexts) {
  CONCLAVE_REQUIRE_GPU();
  std::vector<Part> parts;
  for (int32_t i = 0; i < 256; ++i) parts.push_back({1, i % 63});
  ExpectParity(parts, false);
  ExpectParity(parts, true);
  ExpectParity({{1, 0}}, false);
}

TEST_P(GpuAttention, PrefillsFromTheBeginning) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {1, 2, 7, 8, 9, 63, 65, 200}) {
    SCOPED_TRACE(rows);
    ExpectParity({{rows, 0}}, rows % 2 == 0);
  }
}

TEST_P(GpuAttention, PrefillsBehindAContext) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {2, 7, 8, 9, 63, 65, 200}) {
    SCOPED_TRACE(rows);
    ExpectParity({{rows, 64 + rows}}, rows % 2 != 0);
  }
  ExpectParity({{4, 3000}}, false);
}

TEST_P(GpuAttention, KeepsSequencesApart) {
  CONCLAVE_REQUIRE_GPU();
  std::vector<Part> parts = {
      {1, 500}, {65, 0}, {1, 31}, {9, 100}, {1, 0}, {130, 62}, {7, 63}, {8, 1}};
  ExpectParity(parts, false);
  // More sequences than lanes.
  for (int32_t i = 0; i < 40; ++i) parts.push_back({1 + i % 3, 5 * i});
  ExpectParity(parts, true);
}

TEST_P(GpuAttention, CutsChangeLittle) {
  CONCLAVE_REQUIRE_GPU();
  const std::vector<Part> parts = {{130, 20}};
  World whole(GetParam().heads, GetParam().dtype, parts);
  World cut(GetParam().heads, GetParam().dtype, parts);
  const TestStep step(whole.queue(), whole.sequences());
  const auto want = whole.OnDevice(step.step, false);
  std::vector<float> got;
  for (const int32_t rows : {64, 1, 60, 5}) {
    TestSequence part = cut.sequences()[0];
    const auto done = static_cast<int32_t>(got.size() / cut.Width());
    part.position += done;
    part.rows = rows;
    const TestStep one(cut.queue(), {part});
    const auto y = cut.OnDevice(one.step, false, done);
    got.insert(got.end(), y.begin(), y.end());
  }
  // Only the order of sums differs, and what bf16 makes of it.
  whole.ExpectSame(got, want, GetParam().dtype == KvDType::kF32 ? 1e-5 : 4e-3);
}

// Sequences that follow do not change a bit while the number of parts into
// which contexts are cut is the same: here one.
TEST_P(GpuAttention, OtherRowsChangeNothing) {
  CONCLAVE_REQUIRE_GPU();
  World world(GetParam().heads, GetParam().dtype, {{1, 60}, {1, 13}, {1, 40}});
  const TestStep all(world.queue(), world.sequences());
  const TestStep first(world.queue(), {world.sequences()[0]});
  const auto together = world.OnDevice(all.step, false);
  const auto alone = world.OnDevice(first.step, false);
  EXPECT_EQ(
      std::memcmp(alone.data(), together.data(), alone.size() * sizeof(float)),
      0);
}

// A recorded step finds its work in device memory: positions differ at replay.
TEST_P(GpuAttention, ReplaysAtOtherPositions) {
  CONCLAVE_REQUIRE_GPU();
  for (const int32_t rows : {1, 3}) {
    World world(
        GetParam().heads, GetParam().dtype, {{rows, 700}, {rows, 5}, {1, 130}});
    auto recorded = world.sequences();
    for (TestSequence& s : recorded) s.position = 0;
    TestStep step(world.queue(), recorded);
    step.step.positions_max = 1024;
    world.Begin(step.step);
    ASSERT_TRUE(world.queue().BeginRecording().ok());
    ASSERT_TRUE(world.Queue(step.step, false).ok());
    const auto graph = world.queue().EndRecording();
    ASSERT_TRUE(graph.ok()) << graph.status();
    step.Replace(world.queue(), world.sequences());
    for (int32_t i = 0; i < 2; ++i) {
      ASSERT_TRUE(world.queue().Launch(*graph).ok());
    }
    const auto got = world.Output(step.step.rows, false);
    world.ExpectSame(got, world.OnHost(), ToleranceOf(GetParam().dtype));
    world.ExpectCacheAppended();
  }
}

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  const KvDType dtype = info.param.dtype;
  return "Heads" + std::to_string(info.param.heads) +
         (dtype == KvDType::kF32    ? "F32"
          : dtype == KvDType::kBF16 ? "BF16"
                                    : "Fp8");
}

INSTANTIATE_TEST_SUITE_P(Shapes,
                         GpuAttention,
                         ::testing::Values(Case{4, KvDType::kF32},
                                           Case{4, KvDType::kBF16},
                                           Case{4, KvDType::kFp8},
                                           Case{16, KvDType::kF32},
                                           Case{16, KvDType::kBF16},
                                           Case{16, KvDType::kFp8},
                                           Case{32, KvDType::kF32},
                                           Case{32, KvDType::kBF16},
                                           Case{32, KvDType::kFp8}),
                         NameOf);

// Angles of late positions: a float holds them to 0.004 only.
TEST(GpuAttentionLimits, RotatesLatePositionsExactly) {
  CONCLAVE_REQUIRE_GPU();
  World world(4, KvDType::kF32, {{1, 70000}});
  const TestStep step(world.queue(), world.sequences());
  const auto got = world.OnDevice(step.step, false);
  const auto want = world.OnHost();
  // Both sums run over 70000 terms.
  world.ExpectSame(got, want, 1e-4);
  world.ExpectCacheAppended();
}

TEST(GpuAttentionLimits, RefusesShapesItDoesNotKnow) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = DeviceQueue::Create(0);
  ASSERT_TRUE(queue.ok()) << queue.status();
  const AttentionShape good = {
      .heads = 4, .kv_heads = 2, .head_dim = kWorldHeadDim, .rotary_dim = 64};
  std::vector<AttentionShape> shapes(6, good);
  shapes[0].head_dim = 128;
  shapes[1].rotary_dim = 63;
  shapes[2].rotary_dim = 258;
  shapes[3].block_tokens = 32;
  shapes[4].heads = 34;  // 17 per KV head
  shapes[5].heads = 5;
  const TestStep step(**queue,
                      {{.rows = 1, .slots_out = {}, .kv_blocks = {0}}});
  for (const AttentionShape& shape : shapes) {
    const absl::Status status = DeviceAttention(
        queue->get(), shape, {}, {}, step.step, nullptr, nullptr, {});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  }
}

}  // namespace
}  // namespace conclave::kernels
