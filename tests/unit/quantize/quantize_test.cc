// SPDX-License-Identifier: Apache-2.0
#include "coordinator/quantize/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/checkpoint/linear.h"
#include "kernels/weight.h"
#include "tests/testing/checkpoint_writer.h"
#include "tests/testing/temp_folder.h"

namespace conclave::quantize {
namespace {

using checkpoint::Checkpoint;
using checkpoint::QuantFormat;
using ::testing::AllOf;
using ::testing::HasSubstr;

class QuantizeTest : public ::testing::Test {
 protected:
  std::filesystem::path Folder(const char* name) {
    return folder_.path() / name;
  }

  static testing::CheckpointOptions Small(QuantFormat format) {
    return {.hidden = 256,
            .experts = 4,
            .intermediate = 256,
            .shared = 64,
            .head_dim = 128,
            .mtp = true,
            .format = format,
            .affine = {4, format == QuantFormat::kGptq ? 128 : 64}};
  }

  std::unique_ptr<Checkpoint> Open(const char* name) {
    auto opened = Checkpoint::Open(Folder(name));
    EXPECT_TRUE(opened.ok()) << opened.status();
    return opened.ok() ? *std::move(opened) : nullptr;
  }

  absl::Status Convert(const Checkpoint& source,
                       const char* to,
                       const char* name) {
    const auto target = MakeTarget(source, *ParseTarget(to));
    if (!target.ok()) return target.status();
    ThreadPool pool(2, 0);
    uint64_t last = 0, whole = 0;
    const absl::Status status =
        Quantize(source,
                 *target,
                 {.out = Folder(name), .file_bytes_max = 1 << 20},
                 &pool,
                 [&](uint64_t done, uint64_t total) {
                   EXPECT_GT(done, last);
                   last = done;
                   whole = total;
                 });
    EXPECT_TRUE(!status.ok() || last == whole);
    return status;
  }

  testing::TempFolder folder_;
};

// All rows of a linear, in float32.
std::vector<float> Values(const Checkpoint& checkpoint,
                          const checkpoint::Linear& linear) {
  const checkpoint::Cut cut{0, linear.layout.rows, 0, linear.layout.cols};
  const auto layout = *checkpoint::LayoutOf(linear, cut, false);
  std::vector<std::byte> data(layout.data_bytes());
  std::vector<std::byte> scales(layout.scale_bytes());
  std::vector<std::byte> biases(layout.bias_bytes());
  EXPECT_TRUE(checkpoint::ReadPart(
                  checkpoint, linear, cut, layout, {data, scales, biases})
                  .ok());
  const auto view =
      kernels::ViewOf({.layout = layout,
                       .data = data.data(),
                       .scales = scales.data(),
                       .biases = layout.biases ? biases.data() : nullptr});
  std::vector<float> out(layout.rows * layout.cols);
  for (int64_t r = 0; r < layout.rows; ++r) {
    kernels::DecodeRow(
        view, r, std::span(out).subspan(r * layout.cols, layout.cols));
  }
  return out;
}

// Norm of the difference over the norm.
double Apart(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  EXPECT_EQ(a.size(), b.size());
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    difference += std::pow(a[i] - b[i], 2);
    norm += std::pow(b[i], 2);
  }
  return std::sqrt(difference / norm);
}

// From every format to every format: each expert and linear stands at its own
// place, norms are folded once.
TEST_F(QuantizeTest, EveryFormatBecomesEveryOther) {
  for (const QuantFormat from : {QuantFormat::kNone,
                                 QuantFormat::kFp8,
                                 QuantFormat::kGptq,
                                 QuantFormat::kMlx}) {
    testing::WriteCheckpoint(Folder("source"), Small(from));
    const auto source = Open("source");
    ASSERT_NE(source, nullptr);
    for (const char* to : {"mlx4", "mlx8", "fp8"}) {
      SCOPED_TRACE(std::string(to) + " from " +
                   std::to_string(static_cast<int>(from)));
      std::filesystem::remove_all(Folder("out"));
      ASSERT_EQ(Convert(*source, to, "out"), absl::OkStatus());
      const auto out = Open("out");
      ASSERT_NE(out, nullptr);
      const bool mlx = std::string(to) != "fp8";
      const double limit = std::string(to) == "mlx4" ? 0.12 : 0.04;
      EXPECT_EQ(out->folded_norms(), mlx);
      EXPECT_EQ(std::filesystem::exists(Folder("out") / "mtp"), mlx);
      for (const std::string at : {"layers.1.mlp.", "mtp.layers.0.mlp."}) {
        for (int32_t e = 0; e < 4; ++e) {
          const auto a = *checkpoint::FindExpert(*out, at, ExpertId{e});
          const auto b = *checkpoint::FindExpert(*source, at, ExpertId{e});
          EXPECT_LE(Apart(Values(*out, a.gate), Values(*source, b.gate)),
                    limit);
          EXPECT_LE(Apart(Values(*out, a.up), Values(*source, b.up)), limit);
          EXPECT_LE(Apart(Values(*out, a.down), Values(*source, b.down)),
                    limit);
        }
      }
      for (const std::string module :
           {"embed_tokens",
            "lm_head",
            "layers.0.linear_attn.in_proj_b",
            "layers.3.self_attn.q_proj",
            "layers.2.mlp.shared_expert.down_proj"}) {
        const auto a = *checkpoint::FindLinear(*out, module);
        const auto b = *checkpoint::FindLinear(*source, module);
        EXPECT_LE(Apart(Values(*out, a), Values(*source, b)), limit) << module;
      }
      // Routers keep 8 bits, or all.
      const auto router = *checkpoint::FindLinear(*out, "layers.0.mlp.gate");
      EXPECT_NE(router.layout.bits, 4);
      for (const char* norm : {"norm.weight",
                               "layers.3.self_attn.q_norm.weight",
                               "layers.0.linear_attn.norm.weight",
                               "mtp.pre_fc_norm_hidden.weight"}) {
        auto a = *out->ReadFloats(norm), b = *source->ReadFloats(norm);
        const bool gdn = std::string(norm).find("linear_attn") < 20;
        if (!gdn) {
          for (float& w : a) w += out->folded_norms() ? 0.0f : 1.0f;
          for (float& w : b) w += source->folded_norms() ? 0.0f : 1.0f;
        }
        for (size_t i = 0; i < a.size(); ++i) {
          EXPECT_NEAR(a[i], b[i], 4e-3) << norm;
        }
      }
      EXPECT_LE(
          Apart(*out->ReadFloats("layers.0.linear_attn.conv1d.weight"),
                *source->ReadFloats("layers.0.linear_attn.conv1d.weight")),
          4e-3);
    }
  }
}

TEST_F(QuantizeTest, OtherFilesComeAlong) {
  testing::WriteCheckpoint(Folder("source"), Small(QuantFormat::kNone));
  std::ofstream(Folder("source") / "tokenizer.json") << "{}";
  ASSERT_EQ(Convert(*Open("source"), "mlx8", "out"), absl::OkStatus());
  EXPECT_TRUE(std::filesystem::exists(Folder("out") / "tokenizer.json"));
}

TEST_F(QuantizeTest, AFullFolderIsLeftAlone) {
  testing::WriteCheckpoint(Folder("source"), Small(QuantFormat::kNone));
  std::filesystem::create_directories(Folder("out"));
  std::ofstream(Folder("out") / "mine") << "x";
  const auto status = Convert(*Open("source"), "mlx8", "out");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is not empty"));
}

TEST_F(QuantizeTest, LinearsThatHoldNoWholeGroupsAreNamed) {
  auto options = Small(QuantFormat::kNone);
  options.shared = 32;
  testing::WriteCheckpoint(Folder("source"), options);
  EXPECT_THAT(
      std::string(Convert(*Open("source"), "mlx4", "out").message()),
      HasSubstr("mlp.shared_expert.down_proj is quantised, but its 32"));
}

// A broken run leaves nothing that loads: config.json comes last.
TEST_F(QuantizeTest, ABrokenSourceLeavesNoModel) {
  testing::WriteCheckpoint(Folder("source"), Small(QuantFormat::kFp8));
  {
    const auto source = Open("source");
    const auto tensor = *source->Find("layers.3.self_attn.o_proj.weight");
    std::fstream file(tensor.file,
                      std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<int64_t>(tensor.file_offset));
    file << "\x7F";
  }
  const auto status = Convert(*Open("source"), "mlx8", "out");
  EXPECT_THAT(std::string(status.message()), HasSubstr("FP8 NaN"));
  EXPECT_FALSE(std::filesystem::exists(Folder("out") / "config.json"));
}

TEST_F(QuantizeTest, AFullDiskIsNamedAndLeavesNoModel) {
  testing::WriteCheckpoint(Folder("source"), Small(QuantFormat::kNone));
  const auto source = Open("source");
  // Files may not grow any further: writes end half way.
  signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 64 << 10;
  setrlimit(RLIMIT_FSIZE, &small);
  const absl::Status status = Convert(*source, "mlx8", "out");
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("out/model-00001-of-"),
                    HasSubstr("cannot be written (File too large)")));
  EXPECT_FALSE(std::filesystem::exists(Folder("out") / "config.json"));
}

TEST(ParseTarget, NamesWhatItKnows) {
  EXPECT_THAT(std::string(ParseTarget("mlx5").status().message()),
              HasSubstr("known are mlx4, mlx8, fp8"));
}

}  // namespace
}  // namespace conclave::quantize
