// SPDX-License-Identifier: Apache-2.0
// Quantised checkpoints against checkpoints that hold the same numbers in
// float32.

#include <gtest/gtest.h>

#include <bit>
#include <filesystem>
#include <memory>
#include <ostream>
#include <string>
#include <tuple>
#include <vector>

#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/single_process.h"
#include "tests/testing/temp_folder.h"

namespace conclave::testing {
namespace {

using checkpoint::AffineFormat;
using checkpoint::QuantFormat;

struct Format {
  const char* name;
  QuantFormat format;
  AffineFormat affine;
  int intermediate;
  int cut;  // columns that move together
  // Further members of MLX's "quantization": modules of their own.
  const char* modules = "";

  friend void PrintTo(const Format& f, std::ostream* out) { *out << f.name; }
};

// FP8 with 64: an expert's rows end inside of a block of scales.
const Format kFormats[] = {
    {"fp8_64", QuantFormat::kFp8, {}, 64, 64},
    {"fp8_256", QuantFormat::kFp8, {}, 256, 128},
    {"gptq4", QuantFormat::kGptq, {4, 128}, 256, 128},
    {"gptq4_group32", QuantFormat::kGptq, {4, 32}, 64, 32},
    {"mlx3", QuantFormat::kMlx, {3, 64}, 256, 64},
    {"mlx4", QuantFormat::kMlx, {4, 64}, 256, 64},
    {"mlx5", QuantFormat::kMlx, {5, 64}, 128, 64},
    {"mlx6", QuantFormat::kMlx, {6, 64}, 128, 64},
    {"mlx8", QuantFormat::kMlx, {8, 32}, 64, 32},
    {"mlx4_modules",
     QuantFormat::kMlx,
     {4, 64},
     256,
     128,
     R"(,"language_model.model.layers.0.mlp.gate":{"bits":8,"group_size":64},)"
     R"("language_model.lm_head":{"bits":6,"group_size":32},)"
     R"("language_model.model.layers.1.mlp.switch_mlp.up_proj":)"
     R"({"bits":8,"group_size":64},)"
     R"("language_model.model.layers.2.mlp.switch_mlp.down_proj":)"
     R"({"bits":6,"group_size":128},)"
     R"("model.layers.3.self_attn.q_proj":true)"},
};

std::unique_ptr<checkpoint::Checkpoint> Write(const std::string& folder,
                                              const Format& format,
                                              bool decoded) {
  WriteCheckpoint(folder,
                  {.seed = 5,
                   .hidden = 256,
                   .experts = 6,
                   .intermediate = format.intermediate,
                   .shared = 64,
                   .head_dim = 64,
                   .format = format.format,
                   .affine = format.affine,
                   .modules = format.modules,
                   .decoded = decoded});
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

class FormatsTest
    : public ::testing::TestWithParam<std::tuple<kernels::Backend, Format>> {
 protected:
  kernels::Backend backend() const { return std::get<0>(GetParam()); }
  const Format& format() const { return std::get<1>(GetParam()); }

  TempFolder folder_;
};

// To the bit where every number is unpacked before it is used; the fast twin
// takes a group's scale out of the sum of affine codes.
TEST_P(FormatsTest, GivesTheResultsOfTheSameNumbersInFloat32) {
  const auto codes = Write(folder_.path() / "codes", format(), false);
  const auto floats = Write(folder_.path() / "floats", format(), true);
  ASSERT_TRUE(codes != nullptr && floats != nullptr);
  EXPECT_LT(codes->total_tensor_bytes(), floats->total_tensor_bytes());
  SingleProcess a(backend(), {}, 2, *codes), b(backend(), {}, 2, *floats);
  EXPECT_LT(a.shards->bytes(), b.shards->bytes() / 3);
  const auto got = Logits(a), want = Logits(b);
  ASSERT_EQ(got.size(), want.size());
  const bool exact = backend() == kernels::Backend::kCpuPlain ||
                     format().format == QuantFormat::kFp8;
  if (!exact) {
    EXPECT_LE(RelativeError(got.data(), want.data(), got.size()), 1e-5);
    return;
  }
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(got[i]), std::bit_cast<uint32_t>(want[i]))
        << i << ": " << got[i] << " and " << want[i];
  }
}

TEST_P(FormatsTest, CutsInColumns) {
  const auto model = Write(folder_.path() / "codes", format(), false);
  ASSERT_NE(model, nullptr);
  ASSERT_EQ(model->config().expert_shape().column_multiple, format().cut);
  if (format().cut == format().intermediate) return;
  v1::ClusterConfig config;
  config.mutable_placement()->set_split("columns");
  config.mutable_placement()->set_shards(2);
  SingleProcess whole(backend(), {}, 2, *model);
  SingleProcess cut(backend(), config, 2, *model);
  EXPECT_EQ(whole.shards->bytes(), cut.shards->bytes());
  const auto a = Logits(whole), b = Logits(cut);
  EXPECT_LE(RelativeError(a.data(), b.data(), a.size()), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(
    Backends,
    FormatsTest,
    ::testing::Combine(::testing::Values(kernels::Backend::kCpuPlain,
                                         kernels::Backend::kCpu),
                       ::testing::ValuesIn(kFormats)),
    [](const auto& info) {
      const bool fast = std::get<0>(info.param) == kernels::Backend::kCpu;
      return std::string(std::get<1>(info.param).name) +
             (fast ? "_fast" : "_plain");
    });

}  // namespace
}  // namespace conclave::testing
