// SPDX-License-Identifier: Apache-2.0
// FP8 checkpoints against checkpoints that hold the same numbers in float32.

#include <gtest/gtest.h>

#include <bit>
#include <filesystem>
#include <memory>
#include <vector>

#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/single_process.h"
#include "tests/testing/temp_folder.h"

namespace conclave::testing {
namespace {

std::unique_ptr<checkpoint::Checkpoint> Write(const std::string& folder,
                                              int intermediate,
                                              Fp8 fp8) {
  WriteCheckpoint(folder,
                  {.seed = 5,
                   .hidden = 256,
                   .experts = 6,
                   .intermediate = intermediate,
                   .fp8 = fp8});
  auto model = checkpoint::Checkpoint::Open(folder);
  EXPECT_TRUE(model.ok()) << model.status();
  return model.ok() ? *std::move(model) : nullptr;
}

std::vector<float> Logits(SingleProcess& process) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < 70; ++i) ids.push_back((i * 37 + 5) % 128);
  auto sequence = process.runner->Open(0);
  std::vector<float> out = *process.runner->Prefill(&sequence, ids);
  for (const int32_t id : {3, 99, 64}) {
    const auto step =
        *process.runner->Step({{.sequence = &sequence, .tokens = {id}}});
    out.insert(out.end(), step[0].begin(), step[0].end());
  }
  return out;
}

void ExpectSameBits(const std::vector<float>& a, const std::vector<float>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(a[i]), std::bit_cast<uint32_t>(b[i]))
        << i << ": " << a[i] << " and " << b[i];
  }
}

class Fp8Test : public ::testing::TestWithParam<kernels::Backend> {
 protected:
  TempFolder folder_;
};

// 64: an expert's rows end inside of a block of scales.
TEST_P(Fp8Test, GivesTheBitsOfTheSameNumbersInFloat32) {
  for (const int intermediate : {64, 256}) {
    const auto codes =
        Write(folder_.path() / "codes", intermediate, Fp8::kCodes);
    const auto floats =
        Write(folder_.path() / "floats", intermediate, Fp8::kDecoded);
    ASSERT_TRUE(codes != nullptr && floats != nullptr);
    EXPECT_LT(codes->total_tensor_bytes(), floats->total_tensor_bytes() / 2);
    SingleProcess a(GetParam(), {}, 2, *codes), b(GetParam(), {}, 2, *floats);
    EXPECT_LT(a.shards->bytes(), b.shards->bytes() / 3);
    ExpectSameBits(Logits(a), Logits(b));
  }
}

TEST_P(Fp8Test, CutsAtBlocks) {
  const auto model = Write(folder_.path() / "codes", 256, Fp8::kCodes);
  ASSERT_NE(model, nullptr);
  v1::ClusterConfig config;
  config.mutable_placement()->set_split("columns");
  config.mutable_placement()->set_shards(2);
  SingleProcess whole(GetParam(), {}, 2, *model);
  SingleProcess cut(GetParam(), config, 2, *model);
  EXPECT_EQ(whole.shards->bytes(), cut.shards->bytes());
  const auto a = Logits(whole), b = Logits(cut);
  EXPECT_LE(RelativeError(a.data(), b.data(), a.size()), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(Backends,
                         Fp8Test,
                         ::testing::Values(kernels::Backend::kCpuPlain,
                                           kernels::Backend::kCpu),
                         [](const auto& info) {
                           return info.param == kernels::Backend::kCpu
                                      ? "fast"
                                      : "plain";
                         });

}  // namespace
}  // namespace conclave::testing
