// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tests/unit/checkpoint/quantised_fixture.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kDown[] = "layers.1.mlp.experts.3.down_proj.weight";
constexpr char kDownScales[] =
    "layers.1.mlp.experts.3.down_proj.weight_scale_inv";

testing::CheckpointOptions Fp8() {
  return {.hidden = 256, .intermediate = 256, .format = QuantFormat::kFp8};
}

class Fp8Test : public QuantisedTest {};

TEST_F(Fp8Test, AMissingScaleIsNamed) {
  EXPECT_THAT(OpenError(Fp8(), Without(kDownScales)),
              AllOf(HasSubstr(kDown), HasSubstr("has no scales")));
}

TEST_F(Fp8Test, WrongTypesAndSizesAreNamed) {
  EXPECT_THAT(OpenError(Fp8(), WithType(kDownScales, "F16")),
              AllOf(HasSubstr(kDownScales), HasSubstr("scales are BF16")));
  EXPECT_THAT(OpenError(Fp8(), WithType(kDown, "BF16")),
              AllOf(HasSubstr(kDown), HasSubstr("F8_E4M3 is due")));
  EXPECT_THAT(OpenError(Fp8(), WithShape(kDownScales, {2, 1})),
              AllOf(HasSubstr(kDownScales), HasSubstr("[2, 2]")));
}

TEST_F(Fp8Test, NumbersThatAreNoneAreRefused) {
  auto checkpoint = *Open(Fp8());
  Poke(*checkpoint, kDownScales, std::string("\xC0\x7F", 2));
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(kDownScales), HasSubstr("not finite")));
  checkpoint = *Open(Fp8());
  Poke(*checkpoint, kDown, "\xFF");
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(kDown), HasSubstr("FP8 NaN")));
}

TEST_F(Fp8Test, CutsAreAtBlocks) {
  const auto checkpoint = *Open(Fp8());
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
  const auto checkpoint = *Open(Fp8());
  const auto scales = checkpoint->Find(kDownScales)->data;
  ASSERT_EQ(scales.size(), 4 * sizeof(uint16_t));
  const auto half = *LoadShard(*checkpoint, OneExpert(128, 256), nullptr);
  const auto& layer = half.layers[1];
  EXPECT_EQ(layer.down.each.group, 128);
  const auto held = layer.down.scales.bytes();
  EXPECT_TRUE(std::ranges::equal(held.subspan(0, 2), scales.subspan(2, 2)));
  EXPECT_TRUE(std::ranges::equal(held.subspan(2, 2), scales.subspan(6, 2)));
}

}  // namespace
}  // namespace conclave::checkpoint
