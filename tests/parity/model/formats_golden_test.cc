// SPDX-License-Identifier: Apache-2.0

// Every weight format against torch, which dequantised the same checkpoint from
// the format's definition (tests/formats/make_goldens.py). The checkpoints are
// made by tests/formats/make_checkpoints.py: the test "formats.make".

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "boost/json.hpp"
#include "tests/parity/model/tolerances.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/seeded.h"
#include "tests/testing/single_process.h"

namespace conclave::parity {
namespace {

constexpr char kGoldens[] = "tests/golden/formats/";
constexpr char kCheckpoints[] = "build/formats/";
// Steps whose two best tokens are closer may pick the other one.
constexpr float kGapMin = 0.05f;

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.is_open()) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<int32_t> PromptIds(const std::string& source,
                               const std::string& prompt) {
  const auto prompts =
      boost::json::parse(ReadFile(std::string(kGoldens) + "prompts.json"));
  std::vector<int32_t> out;
  for (const auto& id : prompts.at(source).at(prompt).as_array()) {
    out.push_back(id.to_number<int32_t>());
  }
  return out;
}

// Null, with a failure, unless the checkpoint is the one that torch read.
std::unique_ptr<checkpoint::Checkpoint> OpenChecked(const std::string& source,
                                                    const std::string& format) {
  const std::string folder = absl::StrCat(kCheckpoints, source, "/", format);
  std::string digest = ReadFile(folder + "/sha256");
  digest = digest.substr(0, digest.find('\n'));
  const std::string golden =
      ReadFile(absl::StrCat(kGoldens, source, ".", format, ".safetensors"));
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_NE(golden.find(digest), golden.npos)
      << folder << " is not what the golden was made from";
  auto opened = checkpoint::Checkpoint::Open(folder);
  EXPECT_TRUE(opened.ok()) << opened.status();
  return opened.ok() ? *std::move(opened) : nullptr;
}

// Takes the given tokens one by one after these logits; returns how many were
// the best of ours before one was not.
size_t FollowGreedy(testing::ModelRunner& runner,
                    testing::ModelRunner::Sequence& sequence,
                    std::vector<float> logits,
                    const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (testing::ArgMax(std::span(logits)) != ids[i]) return i;
    logits = (*runner.Step({{.sequence = &sequence, .tokens = {ids[i]}}}))[0];
  }
  return ids.size();
}

// A whole prompt at once; the logits of its last `rows` tokens.
std::vector<float> LastLogits(testing::ModelRunner& runner,
                              testing::ModelRunner::Sequence* sequence,
                              const std::vector<int32_t>& ids,
                              size_t rows) {
  const auto logits =
      runner.Step({{.sequence = sequence,
                    .tokens = ids,
                    .prefill = true,
                    .logits_from = static_cast<int32_t>(ids.size() - rows)}});
  EXPECT_TRUE(logits.ok()) << logits.status();
  return logits.ok() ? (*logits)[0] : std::vector<float>();
}

size_t UntilCloseCall(const std::vector<float>& gaps) {
  return std::find_if(gaps.begin(),
                      gaps.end(),
                      [](float gap) { return gap < kGapMin; }) -
         gaps.begin();
}

class FormatGolden : public ::testing::TestWithParam<
                         std::tuple<testing::Form, std::string, std::string>> {
};

TEST_P(FormatGolden, LogitsAndGreedyTokens) {
  const auto& [form, source, format] = GetParam();
  CONCLAVE_REQUIRE_FORM(form);
  const auto model = OpenChecked(source, format);
  ASSERT_NE(model, nullptr);
  const testing::GoldenTensors golden =
      testing::GoldenTensors::At(absl::StrCat("formats/", source, ".", format));
  const std::vector<std::string> prompts =
      source == "tiny" ? std::vector<std::string>{"story", "len63"}
                       : std::vector<std::string>{"walk"};
  const Tolerance tolerance =
      ToleranceOf(form.backend, WeightFormat::kQuantised);
  // Experts whole, and cut where the format and their width allow it.
  const ExpertShape shape = model->config().expert_shape();
  const int32_t cuts = shape.intermediate / shape.column_multiple;
  for (const int32_t shards : {1, std::min(cuts, 2)}) {
    v1::ClusterConfig config;
    if (shards > 1) config.mutable_placement()->set_split("columns");
    config.mutable_placement()->set_shards(shards);
    testing::SingleProcess process(
        form.backend, config, 2, *model, kernels::Activations::kF32, form.gpu);
    for (const std::string& prompt : prompts) {
      const auto ids = PromptIds(source, prompt);
      const auto want = golden.Floats(prompt + ".logits");
      const size_t vocab = model->config().vocab_size;
      auto sequence = process.runner->Open(0);
      const std::vector<float> got =
          LastLogits(*process.runner, &sequence, ids, want.size() / vocab);
      ASSERT_EQ(got.size(), want.size());
      EXPECT_LE(testing::RelativeError(got.data(), want.data(), got.size()),
                tolerance.logits)
          << prompt << " in " << shards << " shards";
      auto greedy = golden.Ints(prompt + ".greedy_ids");
      greedy.resize(UntilCloseCall(golden.Floats(prompt + ".greedy_gap")));
      const std::vector<float> last(got.end() - vocab, got.end());
      EXPECT_EQ(FollowGreedy(*process.runner, sequence, last, greedy),
                greedy.size())
          << prompt << " in " << shards << " shards";
    }
  }
}

const std::string kFormats[] = {"bf16-per-expert",
                                "fp8",
                                "gptq-int4",
                                "mlx3",
                                "mlx4",
                                "mlx5",
                                "mlx6",
                                "mlx8",
                                "mlx-mixed"};

std::string CaseName(
    const ::testing::TestParamInfo<FormatGolden::ParamType>& info) {
  const auto& [form, source, format] = info.param;
  std::string name = absl::StrCat(form.Name(), "_", source, "_", format);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(
    Fast,
    FormatGolden,
    ::testing::Combine(::testing::Values(testing::kFastForm),
                       ::testing::Values("tiny", "random"),
                       ::testing::ValuesIn(kFormats)),
    CaseName);
// The random model's GDN heads are none that the GPU knows: no published model
// has them.
INSTANTIATE_TEST_SUITE_P(
    Cuda,
    FormatGolden,
    ::testing::Combine(::testing::Values(testing::kGpuForm),
                       ::testing::Values("tiny"),
                       ::testing::ValuesIn(kFormats)),
    CaseName);
// One of each kind of weight is enough for the twin of a GPU.
INSTANTIATE_TEST_SUITE_P(
    Twin,
    FormatGolden,
    ::testing::Combine(::testing::Values(testing::kTwinForm),
                       ::testing::Values("tiny"),
                       ::testing::Values("fp8", "gptq-int4", "mlx-mixed")),
    CaseName);
// The plain twin takes its time over the larger model.
INSTANTIATE_TEST_SUITE_P(
    Plain,
    FormatGolden,
    ::testing::Combine(::testing::Values(testing::kPlainForm),
                       ::testing::Values("random"),
                       ::testing::ValuesIn(kFormats)),
    CaseName);

// Activations rounded, to int8 where weights have 4 or 8 bits, on a GPU to
// bf16: small errors in every logit, none that a token at the wrong expert
// would make; greedy tokens up to the first close call.
class RoundedActivations
    : public ::testing::TestWithParam<
          std::tuple<testing::Form, std::string, std::string>> {};

TEST_P(RoundedActivations, StayNearTheReference) {
  const auto& [form, source, format] = GetParam();
  CONCLAVE_REQUIRE_FORM(form);
  const auto model = OpenChecked(source, format);
  ASSERT_NE(model, nullptr);
  const testing::GoldenTensors golden =
      testing::GoldenTensors::At(absl::StrCat("formats/", source, ".", format));
  const std::string prompt = source == "tiny" ? "len63" : "walk";
  const auto ids = PromptIds(source, prompt);
  const auto want = golden.Floats(prompt + ".logits");
  const size_t vocab = model->config().vocab_size;
  testing::SingleProcess process(
      form.backend, {}, 2, *model, kernels::Activations::kInt8, form.gpu);
  auto sequence = process.runner->Open(0);
  const std::vector<float> got =
      LastLogits(*process.runner, &sequence, ids, want.size() / vocab);
  ASSERT_EQ(got.size(), want.size());
  const double error =
      testing::RelativeError(got.data(), want.data(), got.size());
  std::cout << source << " " << format << ": relative error " << error << "\n";
  EXPECT_LE(error, kRoundedActivations);
  EXPECT_GT(error, 0);  // something was rounded
  auto greedy = golden.Ints(prompt + ".greedy_ids");
  greedy.resize(UntilCloseCall(golden.Floats(prompt + ".greedy_gap")));
  const std::vector<float> last(got.end() - vocab, got.end());
  EXPECT_EQ(FollowGreedy(*process.runner, sequence, last, greedy),
            greedy.size());
}

INSTANTIATE_TEST_SUITE_P(
    Fast,
    RoundedActivations,
    ::testing::Combine(::testing::Values(testing::kFastForm),
                       ::testing::Values("tiny", "random"),
                       ::testing::Values("gptq-int4", "mlx4", "mlx8")),
    CaseName);
INSTANTIATE_TEST_SUITE_P(
    OnDevice,
    RoundedActivations,
    ::testing::Combine(::testing::Values(testing::kGpuForm, testing::kTwinForm),
                       ::testing::Values("tiny"),
                       ::testing::Values("gptq-int4", "mlx4", "mlx8", "fp8")),
    CaseName);

// Against the model before it was quantised: these keep its greedy tokens up
// to the first close call; of MLX with 4 bits the agreement is printed.
TEST(QuantisedModel, KeepsTheGreedyTokens) {
  using kernels::Activations;
  for (const auto& [format, activations, keeps] :
       {std::tuple("mlx8", Activations::kF32, true),
        std::tuple("mlx8", Activations::kInt8, true),
        std::tuple("fp8", Activations::kF32, true),
        std::tuple("mlx6", Activations::kF32, true),
        std::tuple("gptq-int4", Activations::kF32, true),
        std::tuple("mlx4", Activations::kF32, false),
        std::tuple("mlx4", Activations::kInt8, false)}) {
    const auto model = OpenChecked("tiny", format);
    ASSERT_NE(model, nullptr);
    testing::SingleProcess process(
        kernels::Backend::kCpu, {}, 2, *model, activations);
    for (const char* name : {"story", "len63"}) {
      const testing::GoldenPrompt& prompt = testing::FindGolden(name);
      const testing::GoldenTensors tensors(name);
      const auto top5 = tensors.Floats("greedy_top5_logprobs");
      std::vector<float> gaps;
      for (size_t i = 0; i < top5.size(); i += 5) {
        gaps.push_back(top5[i] - top5[i + 1]);
      }
      auto greedy = prompt.greedy_ids;
      greedy.resize(UntilCloseCall(gaps));
      ASSERT_GE(greedy.size(), 3u);
      auto sequence = process.runner->Open(0);
      const auto logits = *process.runner->Prefill(&sequence, prompt.ids);
      const size_t vocab = model->config().vocab_size;
      const std::vector<float> last(logits.end() - vocab, logits.end());
      const size_t kept = FollowGreedy(*process.runner, sequence, last, greedy);
      std::cout << format
                << (activations == Activations::kInt8 ? " by int8, " : ", ")
                << name << ": " << kept << " of " << greedy.size()
                << " greedy tokens before a close call\n";
      if (keeps) {
        EXPECT_EQ(kept, greedy.size()) << format << ", " << name;
      }
    }
  }
}

}  // namespace
}  // namespace conclave::parity
