// SPDX-License-Identifier: Apache-2.0
#include "common/checkpoint/fp8.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "common/checkpoint/shard_weights.h"
#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::checkpoint {
namespace {

using testing::CheckpointOptions;
using ::testing::HasSubstr;
using testing::PlannedTensor;

constexpr char kDown[] = "layers.1.mlp.experts.3.down_proj.weight";
constexpr char kDownScales[] =
    "layers.1.mlp.experts.3.down_proj.weight_scale_inv";

class Fp8Test : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      std::function<void(std::vector<PlannedTensor>&)> edit = nullptr) {
    folder_.Clear();
    testing::WriteCheckpoint(folder_.path(),
                             {.hidden = 256,
                              .intermediate = 256,
                              .fp8 = testing::Fp8::kCodes,
                              .edit = std::move(edit)});
    return Checkpoint::Open(folder_.path());
  }

  // Overwrites the first byte or two of a tensor.
  void Poke(const Checkpoint& checkpoint, const char* name, std::string bytes) {
    const TensorView tensor = *checkpoint.Find(name);
    std::fstream file(tensor.file,
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<int64_t>(tensor.file_offset));
    file << bytes;
  }

  Shard OneExpert(int32_t begin, int32_t end) {
    return {ShardId{0}, {{LayerId{1}, ExpertId{3}, begin, end}}};
  }

  std::string LoadError(const Shard& shard) {
    const auto checkpoint = Checkpoint::Open(folder_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return std::string(
        LoadShard(**checkpoint, shard, nullptr).status().message());
  }

  testing::TempFolder folder_;
};

const auto kRename = [](const char* key, const char* dtype) {
  return [key, dtype](std::vector<PlannedTensor>& plan) {
    for (PlannedTensor& t : plan) {
      if (t.key == key) t.dtype = dtype;
    }
  };
};

TEST_F(Fp8Test, AMissingScaleIsNamed) {
  const auto status = Open([](auto& plan) {
                        std::erase_if(plan, [](const PlannedTensor& t) {
                          return t.key == kDownScales;
                        });
                      }).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(kDown), HasSubstr("has no scales")));
}

TEST_F(Fp8Test, WrongTypesAreNamed) {
  auto status = Open(kRename(kDownScales, "F16")).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(kDownScales), HasSubstr("scales are BF16")));
  status = Open(kRename(kDown, "BF16")).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(kDown), HasSubstr("F8_E4M3 is due")));
}

TEST_F(Fp8Test, AWrongNumberOfScalesIsNamed) {
  const auto status = Open([](auto& plan) {
                        for (PlannedTensor& t : plan) {
                          if (t.key == kDownScales) t.shape = {2, 1};
                        }
                      }).status();
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr(kDownScales), HasSubstr("[2, 2]")));
}

TEST_F(Fp8Test, NumbersThatAreNoneAreRefused) {
  auto checkpoint = *Open();
  Poke(*checkpoint, kDownScales, std::string("\xC0\x7F", 2));
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(kDownScales), HasSubstr("no finite number")));
  checkpoint = *Open();
  Poke(*checkpoint, kDown, "\xFF");
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(kDown), HasSubstr("FP8 NaN")));
}

TEST_F(Fp8Test, CutsAreAtBlocks) {
  const auto checkpoint = *Open();
  EXPECT_EQ(checkpoint->config().expert_shape().column_multiple, 128);
  const auto half = LoadShard(*checkpoint, OneExpert(128, 256), nullptr);
  ASSERT_TRUE(half.ok()) << half.status();
  // Codes of three projections; two row blocks of scales each.
  EXPECT_EQ(half->bytes, 3u * 128 * 256 + 2u * (2 + 2 + 2));
  EXPECT_EQ(*ShardBytes(*checkpoint, OneExpert(128, 256)), half->bytes);
  EXPECT_THAT(LoadError(OneExpert(64, 192)), HasSubstr("multiples of 128"));
}

// Each block's scale stands where the kernel looks for it.
TEST_F(Fp8Test, ScalesFollowTheirColumns) {
  const auto checkpoint = *Open();
  const auto scales = *ReadFp8Scales(*checkpoint, kDown);
  ASSERT_EQ(scales.size(), 4u);
  const auto half = *LoadShard(*checkpoint, OneExpert(128, 256), nullptr);
  const auto& layer = half.layers[1];
  EXPECT_EQ(layer.down_block, 128);
  const auto* held =
      reinterpret_cast<const uint16_t*>(layer.down_scales.data());
  EXPECT_EQ(held[0], scales[1]);
  EXPECT_EQ(held[1], scales[3]);
}

}  // namespace
}  // namespace conclave::checkpoint
