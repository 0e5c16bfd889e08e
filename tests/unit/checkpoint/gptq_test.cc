// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "tests/unit/checkpoint/quantised_fixture.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kDown[] = "layers.1.mlp.experts.3.down_proj";

testing::CheckpointOptions Gptq() {
  return {.hidden = 256,
          .intermediate = 256,
          .format = QuantFormat::kGptq,
          .affine = {4, 128}};
}

class GptqTest : public QuantisedTest {
 protected:
  static std::string Part(const char* what) {
    return std::string(kDown) + what;
  }
};

TEST_F(GptqTest, AMissingPartIsNamed) {
  for (const char* part : {".scales", ".qzeros", ".g_idx"}) {
    EXPECT_THAT(OpenError(Gptq(), Without(Part(part))),
                AllOf(HasSubstr(Part(part)), HasSubstr("is missing")));
  }
  EXPECT_THAT(OpenError(Gptq(), Without(Part(".qweight"))),
              AllOf(HasSubstr(Part(".weight")), HasSubstr("is missing")));
}

TEST_F(GptqTest, WrongTypesAndSizesAreNamed) {
  EXPECT_THAT(OpenError(Gptq(), WithType(Part(".qweight"), "U32")),
              AllOf(HasSubstr(Part(".qweight")), HasSubstr("I32 is due")));
  EXPECT_THAT(OpenError(Gptq(), WithType(Part(".scales"), "F32")),
              AllOf(HasSubstr(Part(".scales")), HasSubstr("BF16 or F16")));
  EXPECT_THAT(OpenError(Gptq(), WithShape(Part(".scales"), {4, 256})),
              AllOf(HasSubstr(Part(".scales")), HasSubstr("[2, 256]")));
}

TEST_F(GptqTest, OnlySymmetricCodesInOrderAreRead) {
  auto checkpoint = *Open(Gptq());
  Poke(*checkpoint, Part(".qzeros").c_str(), "\x78");
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(Part(".qzeros")), HasSubstr("other than 7")));
  checkpoint = *Open(Gptq());
  Poke(*checkpoint, Part(".g_idx").c_str(), "\x01");
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(Part(".g_idx")), HasSubstr("desc_act")));
  checkpoint = *Open(Gptq());
  Poke(*checkpoint, Part(".scales").c_str(), std::string("\x01\x7C", 2));
  EXPECT_THAT(LoadError(OneExpert(0, 256)),
              AllOf(HasSubstr(Part(".scales")), HasSubstr("not finite")));
}

TEST_F(GptqTest, SlicesAreTheirColumns) {
  const auto checkpoint = *Open(Gptq());
  const auto whole = *LoadShard(*checkpoint, OneExpert(0, 256), nullptr);
  const auto part = *LoadShard(*checkpoint, OneExpert(128, 256), nullptr);
  const ShardLayer &a = whole.layers[1], &b = part.layers[1];
  EXPECT_EQ(part.bytes, whole.bytes / 2);
  EXPECT_EQ(*ShardBytes(*checkpoint, OneExpert(128, 256)), part.bytes);
  const auto gate = a.gate.data.bytes();
  EXPECT_TRUE(std::ranges::equal(b.gate.data.bytes(),
                                 gate.subspan(128 * 128, 128 * 128)));
  const auto scales = a.gate.scales.bytes();
  EXPECT_TRUE(std::ranges::equal(b.gate.scales.bytes(),
                                 scales.subspan(128 * 4, 128 * 4)));
  for (size_t row : {0, 1, 255}) {
    EXPECT_TRUE(
        std::ranges::equal(b.down.data.bytes().subspan(row * 64, 64),
                           a.down.data.bytes().subspan(row * 128 + 64, 64)));
  }
  EXPECT_THAT(LoadError(OneExpert(64, 192)), HasSubstr("multiples of 128"));
}

}  // namespace
}  // namespace conclave::checkpoint
