// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "common/checkpoint/linear.h"
#include "tests/unit/checkpoint/quantised_fixture.h"

namespace conclave::checkpoint {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr char kDown[] = "layers.1.mlp.switch_mlp.down_proj";

testing::CheckpointOptions Mlx() {
  return {.hidden = 256,
          .intermediate = 256,
          .shared = 64,
          .head_dim = 64,
          .format = QuantFormat::kMlx,
          .affine = {4, 64}};
}

class AffineTest : public QuantisedTest {};

TEST_F(AffineTest, NormsOfThisLayoutAreFolded) {
  EXPECT_TRUE((*Open(Mlx()))->folded_norms());
  EXPECT_FALSE((*Open({}))->folded_norms());
}

TEST_F(AffineTest, AMissingPartIsNamed) {
  const std::string module = kDown;
  EXPECT_THAT(OpenError(Mlx(), Without(module + ".scales")),
              AllOf(HasSubstr(module + ".weight"), HasSubstr("has no scales")));
  EXPECT_THAT(OpenError(Mlx(), Without(module + ".biases")),
              AllOf(HasSubstr(module + ".biases"), HasSubstr("is missing")));
  EXPECT_THAT(OpenError(Mlx(), Without(module + ".weight")),
              AllOf(HasSubstr("language_model.model." + module + ".weight"),
                    HasSubstr("is missing")));
}

TEST_F(AffineTest, WrongTypesAndSizesAreNamed) {
  const std::string module = kDown;
  EXPECT_THAT(OpenError(Mlx(), WithType(module + ".weight", "I32")),
              AllOf(HasSubstr(module + ".weight"), HasSubstr("U32 is due")));
  EXPECT_THAT(OpenError(Mlx(), WithType(module + ".scales", "F32")),
              AllOf(HasSubstr(module + ".scales"), HasSubstr("BF16 or F16")));
  // As of groups of 128.
  EXPECT_THAT(OpenError(Mlx(), WithShape(module + ".scales", {8, 256, 2})),
              AllOf(HasSubstr(module + ".scales"), HasSubstr("[8, 256, 4]")));
  // As of 8 bits.
  EXPECT_THAT(OpenError(Mlx(), WithShape(module + ".weight", {8, 256, 64})),
              AllOf(HasSubstr(module + ".weight"), HasSubstr("[8, 256, 32]")));
}

TEST_F(AffineTest, ScalesAndBiasesAgreeInType) {
  ASSERT_TRUE(
      Open(Mlx(), WithType(std::string(kDown) + ".biases", "F16")).ok());
  EXPECT_THAT(
      LoadError(OneExpert(0, 256)),
      AllOf(HasSubstr(kDown), HasSubstr("differs from that of the sca")));
}

TEST_F(AffineTest, QuantisedAgainstTheConfigurationIsRefused) {
  auto options = Mlx();
  options.edit = nullptr;
  auto checkpoint = Open(options);
  ASSERT_TRUE(checkpoint.ok());
  const std::string config = testing::ConfigJson(options);
  const std::string at = "\"group_size\":64";
  std::string text = config;
  text.insert(text.find(at) + at.size(),
              ",\"language_model.model.layers.0.mlp.gate\":false");
  std::ofstream(folder_.path() / "config.json") << text;
  EXPECT_THAT(
      std::string(Checkpoint::Open(folder_.path()).status().message()),
      AllOf(HasSubstr("layers.0.mlp.gate"), HasSubstr("is not quantised")));
}

TEST_F(AffineTest, GroupsThatDoNotFillARowAreRefused) {
  auto options = Mlx();
  ASSERT_TRUE(Open(options).ok());
  std::string text = testing::ConfigJson(options);
  const std::string from = "\"group_size\":64";
  text.replace(text.find(from), from.size(), "\"group_size\":1024");
  std::ofstream(folder_.path() / "config.json") << text;
  EXPECT_THAT(std::string(Checkpoint::Open(folder_.path()).status().message()),
              HasSubstr("no multiple of 1024"));
}

TEST_F(AffineTest, ScalesThatAreNoNumbersAreRefused) {
  const auto part = [](const char* what) { return std::string(kDown) + what; };
  for (const char* what : {".scales", ".biases"}) {
    const auto checkpoint = *Open(Mlx());
    // Of expert 3: a fourth of the tensor's 8 x 256 x 4 halves before it.
    const std::string name = part(what);
    TensorView tensor = *checkpoint->Find(name);
    std::fstream file(tensor.file,
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<int64_t>(tensor.file_offset) + 3 * 256 * 4 * 2);
    file << std::string("\x80\xFF", 2);  // -infinity
    file.close();
    EXPECT_THAT(LoadError(OneExpert(0, 256)),
                AllOf(HasSubstr(name), HasSubstr("not finite")));
  }
}

TEST_F(AffineTest, SlicesAreTheirColumns) {
  const auto checkpoint = *Open(Mlx());
  const auto whole = *LoadShard(*checkpoint, OneExpert(0, 256), nullptr);
  const auto part = *LoadShard(*checkpoint, OneExpert(64, 192), nullptr);
  const ShardLayer &a = whole.layers[1], &b = part.layers[1];
  EXPECT_EQ(part.bytes, whole.bytes / 2);
  EXPECT_TRUE(std::ranges::equal(
      b.up.data.bytes(), a.up.data.bytes().subspan(64 * 128, 128 * 128)));
  for (size_t row : {0, 1, 255}) {
    EXPECT_TRUE(
        std::ranges::equal(b.down.data.bytes().subspan(row * 64, 64),
                           a.down.data.bytes().subspan(row * 128 + 32, 64)));
    EXPECT_TRUE(
        std::ranges::equal(b.down.scales.bytes().subspan(row * 4, 4),
                           a.down.scales.bytes().subspan(row * 8 + 2, 4)));
  }
  EXPECT_THAT(LoadError(OneExpert(0, 32)), HasSubstr("multiples of 64"));
}

// Its place outside of the index is where MLX's readers do not look.
TEST_F(AffineTest, TheMtpBlockMayStandApart) {
  testing::CheckpointOptions options = Mlx();
  options.mtp = true;
  std::vector<testing::PlannedTensor> mtp;
  ASSERT_TRUE(Open(options, [&](auto& plan) {
                std::erase_if(plan, [&](const testing::PlannedTensor& t) {
                  if (!t.key.starts_with("mtp.")) return false;
                  mtp.push_back(t);
                  return true;
                });
              }).ok());
  ASSERT_FALSE(mtp.empty());
  std::filesystem::create_directories(folder_.path() / "mtp");
  {
    std::ofstream out(folder_.path() / "mtp/weights.safetensors",
                      std::ios::binary);
    out << testing::SafetensorsHeader(mtp);
    for (const auto& tensor : mtp) {
      out << testing::TensorBytes(options.seed, tensor);
    }
  }
  const auto opened = Checkpoint::Open(folder_.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_TRUE((*opened)->Has("mtp.fc.scales"));
  EXPECT_TRUE(FindLinear(**opened, "mtp.fc").ok());
}

}  // namespace
}  // namespace conclave::checkpoint
