// SPDX-License-Identifier: Apache-2.0
// A worker's experts on a device, against the plain twin on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "common/transport/wire.h"
#include "tests/gpu/worker_world.h"
#include "tests/testing/form.h"
#include "tests/unit/worker/assignments.h"
#include "worker/expert_runner.h"
#include "worker/expert_store.h"

namespace conclave::worker {
namespace {

using kernels::Activations;
using ::testing::HasSubstr;

constexpr double kExactError = 1e-5;
// x, hidden and, where there are many rows, weights are bf16: of a row, whose
// sums may cancel (the worst of 300 rows of 3-bit weights is off by 0.032), and
// of a frame. Another row's sums would be off by 1.
constexpr double kBf16Row = 5e-2;
constexpr double kBf16Error = 1e-2;

struct Case {
  std::string format = "affine4";
  int32_t rows = 1;
  int32_t slices = 8;
  int32_t width = 128;
  int32_t hidden = 256;
  int32_t per_row = 3;
  bool exact = false;
  bool all_to_one = false;
  // Pieces of a frame.
  int32_t rows_max = ExpertDevice::kRowsMax;
  int32_t pairs_max = ExpertDevice::kPairsMax;
};

void CheckSums(int32_t number, const Case& c) {
  SCOPED_TRACE(c.format + ", rows " + std::to_string(c.rows) + ", width " +
               std::to_string(c.width) + (c.exact ? ", exact" : "") +
               (c.all_to_one ? ", one slice" : ""));
  const HeldShard host = WorldShard(c.format, c.slices, c.width, c.hidden);
  HeldShard moved = WorldShard(c.format, c.slices, c.width, c.hidden);
  moved.on_device.resize(1);
  const WorldFrame frame(
      7, c.rows, c.hidden, c.slices, c.per_row, c.all_to_one);
  ThreadPool pool(1);
  HostShardSums plain(kernels::Backend::kCpuPlain, &pool);
  const auto want = frame.Sum(&plain, host, Activations::kF32);
  const auto device = NewDevice(number, c.rows_max, c.pairs_max);
  ASSERT_NE(device, nullptr);
  ASSERT_TRUE(
      device->Reserve({.hidden = c.hidden, .width = c.width, .exact = c.exact})
          .ok());
  const absl::Status loaded = device->Load(&moved, 0);
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_TRUE(moved.weights.layers[0].gate.data.empty());
  EXPECT_GT(moved.DeviceBytes(), 0u);
  const auto got = frame.Sum(
      device.get(), moved, c.exact ? Activations::kF32 : Activations::kInt8);
  // Row by row, so that a row of another's would show.
  const auto hidden = static_cast<size_t>(c.hidden);
  for (size_t at = 0; at < got.size(); at += hidden) {
    ASSERT_LE(testing::RelativeError(&got[at], &want[at], hidden),
              c.exact ? kExactError : kBf16Row)
        << "row " << at / hidden;
  }
  EXPECT_LE(testing::RelativeError(got.data(), want.data(), got.size()),
            c.exact ? kExactError : kBf16Error);
}

std::vector<std::string> WorldFormats() {
  return {"bf16", "affine3", "affine4", "affine6", "affine8", "gptq", "fp8"};
}

class DeviceWorker : public ::testing::TestWithParam<testing::Form> {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         DeviceWorker,
                         ::testing::Values(testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(DeviceWorker, AllFormats) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  for (const std::string& format : WorldFormats()) {
    for (const bool exact : {false, true}) {
      CheckSums(GetParam().gpu, {.format = format, .rows = 5, .exact = exact});
    }
    CheckSums(GetParam().gpu, {.format = format, .rows = 300, .slices = 4});
  }
}

TEST_P(DeviceWorker, BatchesOfAllSizes) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  for (const int32_t rows : {1, 2, 8, 9, 31, 33, 64, 127, 256}) {
    CheckSums(GetParam().gpu, {.rows = rows, .slices = 24});
    CheckSums(GetParam().gpu,
              {.format = "bf16", .rows = rows, .all_to_one = true});
  }
}

// Widths of slices that are no multiple of 64, and one unit of it; pairs in
// groups of 8, 16, 32 and 128.
TEST_P(DeviceWorker, NarrowSlices) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  for (const int32_t width : {16, 32, 48, 64, 96}) {
    for (const int32_t rows : {3, 20, 60, 200}) {
      CheckSums(GetParam().gpu,
                {.format = "bf16", .rows = rows, .width = width});
    }
    CheckSums(GetParam().gpu,
              {.format = "bf16", .rows = 3, .width = width, .exact = true});
  }
}

TEST_P(DeviceWorker, FramesInPieces) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  CheckSums(GetParam().gpu, {.rows = 100, .rows_max = 7});
  CheckSums(GetParam().gpu, {.rows = 100, .pairs_max = 20});
}

// In one form of the products no row's bits depend on the other rows.
TEST_P(DeviceWorker, ARowAloneHasTheSameBits) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  HeldShard shard = WorldShard("affine4", 4, 128, 256);
  shard.on_device.resize(1);
  const auto device = NewDevice(GetParam().gpu);
  ASSERT_NE(device, nullptr);
  ASSERT_TRUE(device->Reserve({.hidden = 256, .width = 128}).ok());
  ASSERT_TRUE(device->Load(&shard, 0).ok());
  const WorldFrame frame(7, 4, 256, 4, 1, true);
  const auto all = frame.Sum(device.get(), shard, Activations::kInt8);
  for (size_t r = 0; r < 4; ++r) {
    WorldFrame one = frame;
    one.slice = {1};
    one.row = {0};
    one.rows = {0};
    one.weight = {frame.weight[r]};
    one.x.assign(frame.x.begin() + r * 256, frame.x.begin() + (r + 1) * 256);
    const auto alone = one.Sum(device.get(), shard, Activations::kInt8);
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + r * 256))
        << "row " << r;
  }
}

TEST_P(DeviceWorker, WithoutBuffersFramesAreRefused) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  HeldShard shard = WorldShard("bf16", 2, 64, 64);
  shard.on_device.resize(1);
  const auto device = NewDevice(GetParam().gpu);
  ASSERT_NE(device, nullptr);
  ASSERT_TRUE(device->Load(&shard, 0).ok());
  const std::vector<float> x(64);
  std::vector<float> out(64);
  const std::vector<int32_t> zero = {0};
  const std::vector<float> one = {1};
  EXPECT_EQ(device
                ->Sum({.shard = &shard,
                       .layer = 0,
                       .hidden = 64,
                       .x = std::as_bytes(std::span(x)),
                       .rows = zero,
                       .entries = {zero, zero, one}},
                      out)
                .code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(device->Health().ok());
}

// A store and a runner over the embedded model.
struct Side {
  Side(ExpertDevice* device, ShardSums* sums)
      : store([device] {
          ExpertStore::Options options;
          options.device = device;
          return options;
        }()),
        runner("w0", &store, sums) {}
  absl::Status Assign(const v1::AssignRequest& request) {
    return store.Assign(request, [](const auto&) {});
  }
  ExpertStore store;
  ExpertRunner runner;
};

// Whole experts and halves of columns, a shard without entries among them.
transport::ExpertRequest Request(int32_t layer, const WorldFrame& frame) {
  transport::ExpertRequest request;
  request.tag = {
      .generation = 5, .step = 1, .layer = static_cast<LayerId>(layer)};
  request.row_count = static_cast<int32_t>(frame.rows.size());
  request.hidden = static_cast<int32_t>(frame.x.size() / frame.rows.size());
  request.shards = {{ShardId{1}, frame.slice, frame.row, frame.weight},
                    {ShardId{2}, {}, {}, {}},
                    {ShardId{3}, frame.slice, frame.row, frame.weight}};
  request.x = std::as_bytes(std::span(frame.x));
  return request;
}

std::vector<Shard> WorldShards(const checkpoint::ModelConfig& config) {
  const int32_t width = config.moe_intermediate_size;
  return {testing::MakeShard(config, 1, 0, 2, 0, width),
          testing::MakeShard(config, 2, 4, 6, 0, width),
          testing::MakeShard(config, 3, 2, 4, width / 2, width)};
}

TEST_P(DeviceWorker, FramesOfAModel) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto tiny = *checkpoint::Checkpoint::Open(testing::kTinyModel);
  const auto& config = tiny->config();
  const auto assign = testing::MakeAssign(config, 5, WorldShards(config));
  ThreadPool pool(2);
  HostShardSums host(kernels::Backend::kCpuPlain, &pool);
  const auto device = NewDevice(GetParam().gpu);
  ASSERT_NE(device, nullptr);
  Side cpu(nullptr, &host), gpu(device.get(), device.get());
  ASSERT_TRUE(cpu.Assign(assign).ok());
  const absl::Status assigned = gpu.Assign(assign);
  ASSERT_TRUE(assigned.ok()) << assigned;
  EXPECT_GT(gpu.store.resident_bytes(), 0u);
  for (const auto& [id, held] : gpu.store.current()->held) {
    for (size_t i = 0; i < held->done.size(); ++i) {
      EXPECT_FALSE(held->InHostMemory(i));
    }
  }
  const WorldFrame frame(3, 9, config.hidden_size, 2, 1, false);
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    const Buffer bytes = transport::EncodeRequest(Request(layer, frame));
    const Buffer want = cpu.runner.Handle(bytes.bytes());
    const Buffer got = gpu.runner.Handle(bytes.bytes());
    const auto a = transport::DecodeReply(want.bytes());
    const auto b = transport::DecodeReply(got.bytes());
    ASSERT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
    for (size_t s = 0; s < 3; ++s) {
      ASSERT_TRUE(std::ranges::equal(a->shards[s].row, b->shards[s].row));
      const auto numbers = [](const transport::ShardPartial& from) {
        return reinterpret_cast<const float*>(from.sum.data());
      };
      EXPECT_LE(testing::RelativeError(numbers(b->shards[s]),
                                       numbers(a->shards[s]),
                                       b->shards[s].sum.size() / sizeof(float)),
                kExactError);
    }
  }
}

TEST_P(DeviceWorker, AssignsWhatIsNewAndRefusesWhatDoesNotFit) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto tiny = *checkpoint::Checkpoint::Open(testing::kTinyModel);
  const auto& config = tiny->config();
  const std::vector<Shard> shards = WorldShards(config);
  const auto device = NewDevice(GetParam().gpu);
  ASSERT_NE(device, nullptr);
  Side gpu(device.get(), device.get());
  ASSERT_TRUE(
      gpu.Assign(testing::MakeAssign(config, 5, {shards[0], shards[1]})).ok());
  const auto before = gpu.store.current()->held.at(ShardId{1});
  ASSERT_TRUE(
      gpu.Assign(testing::MakeAssign(config, 6, {shards[0], shards[2]})).ok());
  EXPECT_EQ(gpu.store.current()->held.at(ShardId{1}), before);
  EXPECT_FALSE(gpu.store.current()->held.contains(ShardId{2}));

  const auto small = NewDevice(
      GetParam().gpu, ExpertDevice::kRowsMax, ExpertDevice::kPairsMax, [] {
        return absl::StatusOr<MemoryState>(
            MemoryState{.total_bytes = 1 << 20, .free_bytes = 1 << 20});
      });
  ASSERT_NE(small, nullptr);
  Side full(small.get(), small.get());
  const absl::Status status =
      full.Assign(testing::MakeAssign(config, 5, shards));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("on GPU of a test, "));
  EXPECT_EQ(full.store.current(), nullptr);
}

// After an error of the device every frame is told so, and nothing is ready.
TEST_P(DeviceWorker, ALostDeviceIsNamedInEveryFrame) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  const auto tiny = *checkpoint::Checkpoint::Open(testing::kTinyModel);
  const auto& config = tiny->config();
  const auto assign = testing::MakeAssign(config, 5, WorldShards(config));
  bool works = true;
  const auto device = NewDevice(GetParam().gpu,
                                ExpertDevice::kRowsMax,
                                ExpertDevice::kPairsMax,
                                [&]() -> absl::StatusOr<MemoryState> {
                                  if (works) return WorldMemory();
                                  return absl::InternalError("CUDA: lost");
                                });
  ASSERT_NE(device, nullptr);
  Side gpu(device.get(), device.get());
  ASSERT_TRUE(gpu.Assign(assign).ok());
  EXPECT_TRUE(device->Health().ok());
  works = false;
  EXPECT_FALSE(device->AskMemory().ok());
  works = true;
  EXPECT_EQ(device->Health().code(), absl::StatusCode::kUnavailable);
  const WorldFrame frame(3, 9, config.hidden_size, 2, 1, false);
  const Buffer bytes = transport::EncodeRequest(Request(0, frame));
  for (int i = 0; i < 2; ++i) {
    const Buffer reply = gpu.runner.Handle(bytes.bytes());
    const auto error = transport::DecodeError(reply.bytes());
    ASSERT_TRUE(error.ok()) << error.status();
    EXPECT_EQ(error->code, absl::StatusCode::kUnavailable);
    EXPECT_EQ(error->message, "worker w0: GPU of a test: CUDA: lost");
  }
  EXPECT_FALSE(gpu.Assign(assign).ok());
}

}  // namespace
}  // namespace conclave::worker
