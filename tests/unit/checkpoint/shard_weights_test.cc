// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/shard_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>

#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::checkpoint {
namespace {

using testing::CheckpointOptions;
using ::testing::HasSubstr;
using testing::WriteCheckpoint;

class ShardTest : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> Open(const CheckpointOptions& options) {
    temp_.Clear();
    WriteCheckpoint(folder_, options);
    auto opened = Checkpoint::Open(folder_.string());
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }

  testing::TempFolder temp_;
  const std::filesystem::path& folder_ = temp_.path();
};

// Different experts and widths per layer; layer 1 has none.
Shard SomeSlices() {
  Shard shard;
  shard.id = ShardId{3};
  for (const int expert : {1, 4, 7}) {
    shard.slices.push_back({LayerId{0}, ExpertId{expert}, 8, 24});
  }
  shard.slices.push_back({LayerId{2}, ExpertId{5}, 0, 32});
  shard.slices.push_back({LayerId{3}, ExpertId{0}, 16, 32});
  shard.slices.push_back({LayerId{3}, ExpertId{7}, 0, 16});
  return shard;
}

// Element (row, column) of one projection of one expert, straight from the
// mapped file: the slow twin of LoadShard.
std::vector<std::byte> Element(const Checkpoint& checkpoint,
                               const Slice& slice,
                               const std::string& part,
                               int64_t row,
                               int64_t column) {
  const ModelConfig& c = checkpoint.config();
  const int64_t i = c.moe_intermediate_size, h = c.hidden_size;
  const int64_t e = Index(slice.expert);
  const std::string at =
      "layers." + std::to_string(Index(slice.layer)) + ".mlp.experts.";
  const bool down = part == "down";
  int64_t index = row * (down ? i : h) + column;
  std::string name = at + std::to_string(e) + "." + part + "_proj.weight";
  if (checkpoint.Has(at + "gate_up_proj")) {
    name = at + (down ? "down_proj" : "gate_up_proj");
    index += down ? e * h * i : (2 * e + (part == "up")) * i * h;
  }
  const TensorView tensor = *checkpoint.Find(name);
  const size_t size = SizeOf(tensor.dtype);
  const auto bytes = tensor.data.subspan(index * size, size);
  return {bytes.begin(), bytes.end()};
}

void ExpectSlice(const Checkpoint& checkpoint,
                 const Slice& slice,
                 const ShardLayer& layer,
                 int64_t local) {
  const int64_t h = checkpoint.config().hidden_size, w = layer.width;
  const size_t size = SizeOf(layer.gate.each.dtype);
  const auto at = [&](const Buffer& buffer, int64_t index) {
    const auto bytes = buffer.bytes().subspan(index * size, size);
    return std::vector<std::byte>(bytes.begin(), bytes.end());
  };
  for (int64_t x = 0; x < h; ++x) {
    for (int64_t y = 0; y < w; ++y) {
      const int64_t column = slice.begin + y;
      ASSERT_EQ(at(layer.gate.data, (local * w + y) * h + x),
                Element(checkpoint, slice, "gate", column, x))
          << ToString(slice) << " " << x << " " << y;
      ASSERT_EQ(at(layer.up.data, (local * w + y) * h + x),
                Element(checkpoint, slice, "up", column, x))
          << ToString(slice) << " " << x << " " << y;
      ASSERT_EQ(at(layer.down.data, (local * h + x) * w + y),
                Element(checkpoint, slice, "down", x, column))
          << ToString(slice) << " " << x << " " << y;
    }
  }
}

TEST_F(ShardTest, HoldsTheSlicesInEveryLayout) {
  for (const bool fused : {true, false}) {
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      const auto model = Open({.dtype = dtype, .fused = fused});
      ASSERT_TRUE(model);
      const Shard shard = SomeSlices();
      const auto weights = LoadShard(*model, shard, nullptr);
      ASSERT_TRUE(weights.ok()) << weights.status();
      EXPECT_EQ(weights->shard.id, shard.id);
      ASSERT_EQ(weights->layers.size(), 4u);
      EXPECT_EQ(weights->layers[1].slices, 0);
      uint64_t bytes = 0;
      std::vector<int> local(4, 0);
      for (const Slice& slice : shard.slices) {
        const ShardLayer& layer = weights->layers[Index(slice.layer)];
        int& position = local[Index(slice.layer)];
        ASSERT_LT(position, layer.slices);
        EXPECT_EQ(layer.expert[position], slice.expert);
        EXPECT_EQ(layer.width, slice.width());
        EXPECT_EQ(layer.gate.each.dtype, dtype);
        ExpectSlice(*model, slice, layer, position++);
        bytes += 3 * slice.width() * 64 * SizeOf(dtype);
      }
      EXPECT_EQ(weights->bytes, bytes);
    }
  }
}

TEST_F(ShardTest, FusedAndPerExpertGiveTheSameBytes) {
  const auto fused = LoadShard(*Open({}), SomeSlices(), nullptr);
  const auto single = LoadShard(*Open({.fused = false}), SomeSlices(), nullptr);
  ASSERT_TRUE(fused.ok() && single.ok());
  for (size_t i = 0; i < fused->layers.size(); ++i) {
    const ShardLayer &a = fused->layers[i], &b = single->layers[i];
    EXPECT_TRUE(std::ranges::equal(a.gate.data.bytes(), b.gate.data.bytes()));
    EXPECT_TRUE(std::ranges::equal(a.up.data.bytes(), b.up.data.bytes()));
    EXPECT_TRUE(std::ranges::equal(a.down.data.bytes(), b.down.data.bytes()));
  }
}

TEST_F(ShardTest, RefusesWhatIsNoPartOfTheModel) {
  const auto model = Open({});
  ASSERT_TRUE(model);
  const auto error = [&](std::vector<Slice> slices) {
    const auto status =
        LoadShard(*model, {ShardId{3}, std::move(slices)}, nullptr).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  const LayerId l0{0};
  const ExpertId e0{0}, e1{1};
  EXPECT_THAT(error({{LayerId{4}, e0, 0, 32}}),
              HasSubstr("shard 3, layer 4, expert 0, columns [0, 32): is not"));
  EXPECT_THAT(error({{LayerId{-1}, e0, 0, 32}}), HasSubstr("is not part"));
  EXPECT_THAT(error({{l0, ExpertId{8}, 0, 32}}), HasSubstr("is not part"));
  EXPECT_THAT(error({{l0, e0, 0, 33}}), HasSubstr("is not part"));
  EXPECT_THAT(error({{l0, e0, -1, 8}}), HasSubstr("is not part"));
  EXPECT_THAT(error({{l0, e0, 8, 8}}), HasSubstr("is not part"));
  EXPECT_THAT(error({{l0, e1, 0, 32}, {l0, e0, 0, 32}}), HasSubstr("ascend"));
  EXPECT_THAT(error({{l0, e0, 0, 16}, {l0, e0, 16, 32}}), HasSubstr("ascend"));
  EXPECT_THAT(error({{l0, e0, 0, 32}, {l0, e1, 0, 16}}),
              HasSubstr("one width"));
}

TEST_F(ShardTest, MixedTypesInOneLayerAreRefused) {
  const std::string bent = "layers.0.mlp.experts.4.down_proj.weight";
  const auto model = Open({.fused = false, .edit = [&](auto& plan) {
                             for (auto& tensor : plan) {
                               if (tensor.key == bent) tensor.dtype = "F32";
                             }
                           }});
  ASSERT_TRUE(model);
  const auto status = LoadShard(*model, SomeSlices(), nullptr).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(bent + ": its storage differs"));
}

TEST_F(ShardTest, ProgressCountsEveryByte) {
  const auto model = Open({});
  std::vector<uint64_t> done;
  const auto weights =
      LoadShard(*model, SomeSlices(), [&](uint64_t bytes, uint64_t total) {
        done.push_back(bytes);
        EXPECT_EQ(total, uint64_t{3} * 64 * 2 * (3 * 16 + 32 + 2 * 16));
      });
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(done.size(), 6u);
  EXPECT_TRUE(std::ranges::is_sorted(done));
  EXPECT_EQ(done.back(), weights->bytes);
}

uint64_t ResidentBytes() {
  std::ifstream in("/proc/self/statm");
  uint64_t total = 0, resident = 0;
  in >> total >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
}

// A worker must fit into the memory of its slices: neither the rest of the
// file nor a second copy of the slices may become resident.
TEST_F(ShardTest, LoadingHalfTheExpertsTakesTheirMemoryAlone) {
  const auto model =
      Open({.layers = 2, .hidden = 512, .experts = 16, .intermediate = 512});
  ASSERT_TRUE(model);
  ASSERT_GT(model->total_tensor_bytes(), uint64_t{48} << 20);
  for (const bool columns : {false, true}) {
    Shard half;
    for (int32_t layer = 0; layer < 2; ++layer) {
      for (int32_t expert = 0; expert < 16; ++expert) {
        if (!columns && expert % 2 == 0) continue;
        half.slices.push_back(
            {LayerId{layer}, ExpertId{expert}, columns ? 256 : 0, 512});
      }
    }
    malloc_trim(0);
    const uint64_t before = ResidentBytes();
    const auto weights = LoadShard(*model, half, nullptr);
    const uint64_t after = ResidentBytes();
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->bytes, uint64_t{24} << 20);
    EXPECT_LE(after, before + weights->bytes + (uint64_t{16} << 20));
    EXPECT_GE(after, before + weights->bytes / 2);  // the measure works
  }
}

}  // namespace
}  // namespace conclave::checkpoint
