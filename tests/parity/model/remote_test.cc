// SPDX-License-Identifier: Apache-2.0

// Experts on workers against experts in the process: same shards, same bits;
// other shards, same greedy tokens.

#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/parity/model/remote_model.h"
#include "tests/parity/model/tolerances.h"
#include "tests/testing/form.h"
#include "tests/testing/golden.h"
#include "tests/testing/model_runner.h"
#include "tests/testing/seeded.h"
#include "tests/testing/single_process.h"

namespace conclave::parity {
namespace {

using testing::FindGolden;
using testing::ModelRunner;
using testing::Workers;

// All logits of a prefill of two sequences in one step, then three steps that
// decode both.
std::vector<std::vector<float>> AllLogits(ModelRunner* runner) {
  std::vector<std::vector<float>> out;
  const auto& story = FindGolden("story");
  const auto& sums = FindGolden("len65");
  ModelRunner::Sequence a = runner->Open(0), b = runner->Open(1);
  const auto add = [&](std::vector<ModelRunner::Feed> feeds) {
    auto logits = runner->Step(std::move(feeds));
    ASSERT_TRUE(logits.ok()) << logits.status();
    for (auto& one : *logits) out.push_back(std::move(one));
  };
  add({{.sequence = &a, .tokens = story.ids, .prefill = true},
       {.sequence = &b, .tokens = sums.ids, .prefill = true}});
  for (int32_t i = 0; i < 3; ++i) {
    add({{.sequence = &a, .tokens = {story.greedy_ids[i]}},
         {.sequence = &b, .tokens = {sums.greedy_ids[i]}}});
  }
  return out;
}

class SameShards
    : public ::testing::TestWithParam<std::tuple<testing::Form, size_t>> {};

TEST_P(SameShards, RemoteAndLocalAgreeBitForBit) {
  const auto [form, index] = GetParam();
  CONCLAVE_REQUIRE_FORM(form);
  const v1::ClusterConfig config = Topologies()[index].config();
  Remote remote(config, form);
  testing::SingleProcess local(form.backend,
                               config,
                               2,
                               testing::TinyModel(),
                               kernels::Activations::kF32,
                               form.gpu,
                               true);
  const auto want = AllLogits(local.runner.get());
  ASSERT_EQ(want.size(), 8u);
  EXPECT_EQ(AllLogits(remote.runner.get()), want);
}

std::string CaseOf(
    const ::testing::TestParamInfo<SameShards::ParamType>& info) {
  return absl::StrCat(std::get<0>(info.param).Name(),
                      "_",
                      Topologies()[std::get<1>(info.param)].name);
}

INSTANTIATE_TEST_SUITE_P(
    Topologies,
    SameShards,
    ::testing::Combine(::testing::Values(testing::kPlainForm,
                                         testing::kFastForm),
                       ::testing::Range(size_t{0}, size_t{10})),
    CaseOf);
// A coordinator on a GPU sees routing and sums, whatever the shards.
INSTANTIATE_TEST_SUITE_P(
    OnDevice,
    SameShards,
    ::testing::Combine(::testing::Values(testing::kGpuForm, testing::kTwinForm),
                       ::testing::Values(2, 5, 8)),
    CaseOf);

// Four shards on one to four workers: who holds what changes no bit.
TEST(OneListOfShards, AnyWorkersGiveTheSameBits) {
  for (const bool columns : {false, true}) {
    std::vector<std::vector<std::vector<float>>> results;
    for (size_t workers = 1; workers <= 4; ++workers) {
      const Topology topology{.name = "",
                              .shares = std::vector<double>(workers, 1),
                              .columns = columns,
                              .shards = 4};
      Remote remote(topology.config(), testing::kFastForm);
      results.push_back(AllLogits(remote.runner.get()));
      EXPECT_EQ(results.back(), results.front()) << workers << " workers";
    }
  }
}

class OtherShards
    : public ::testing::TestWithParam<std::tuple<size_t, size_t>> {};

TEST_P(OtherShards, GiveTheSameGreedyTokens) {
  const auto [topology, prompt_index] = GetParam();
  const auto& prompt = testing::GoldenPrompts()[prompt_index];
  Remote remote(Topologies()[topology].config(), testing::kFastForm);
  const std::vector<int32_t> want = prompt.greedy_until_eos();
  const auto got =
      remote.runner->Greedy(prompt.ids, static_cast<int32_t>(want.size()));
  ASSERT_TRUE(got.ok()) << prompt.name << ": " << got.status();
  EXPECT_EQ(*got, want) << prompt.name;
}

INSTANTIATE_TEST_SUITE_P(Topologies,
                         OtherShards,
                         ::testing::Combine(::testing::Values(2, 5, 8),
                                            ::testing::Range(size_t{0},
                                                             size_t{12})),
                         [](const auto& info) {
                           return absl::StrCat(
                               Topologies()[std::get<0>(info.param)].name,
                               "_",
                               std::get<1>(info.param));
                         });

class TwoWorkers : public ::testing::TestWithParam<testing::Form> {};

TEST_P(TwoWorkers, GiveTheGoldenTokens) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  Remote remote(Workers({1, 2}), GetParam());
  for (const char* name : {"story", "len65", "tool_call"}) {
    const std::vector<int32_t> want = FindGolden(name).greedy_until_eos();
    const auto got = remote.runner->Greedy(FindGolden(name).ids,
                                           static_cast<int32_t>(want.size()));
    ASSERT_TRUE(got.ok()) << name << ": " << got.status();
    EXPECT_EQ(*got, want) << name;
  }
}

// Whole layers on the coordinator's GPU, the others on workers.
TEST_P(TwoWorkers, WholeLayersHere) {
  if (GetParam().backend != kernels::Backend::kCuda) {
    GTEST_SKIP() << "on the CPU whole layers are shards as any other";
  }
  CONCLAVE_REQUIRE_FORM(GetParam());
  Remote none(Workers({1, 1}), GetParam());
  Remote some(Workers({1, 1}),
              GetParam(),
              DType::kF32,
              {true, true, false, true, false, false, true, false});
  EXPECT_GT(some.runner->decoder().expert_bytes(), 0u);
  EXPECT_EQ(none.runner->decoder().expert_bytes(), 0u);
  Remote all(
      Workers({1, 1}), GetParam(), DType::kF32, std::vector<bool>(8, true));
  const auto want = AllLogits(none.runner.get());
  for (const Remote* one : {&some, &all}) {
    const auto got = AllLogits(one->runner.get());
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_LT(
          testing::RelativeError(got[i].data(), want[i].data(), got[i].size()),
          1e-5);
    }
  }
}

// A worker that answers with an error ends the step, which names it; the
// decoder is as good as before.
TEST_P(TwoWorkers, FailureEndsOneStepOnly) {
  CONCLAVE_REQUIRE_FORM(GetParam());
  Remote remote(Workers({1, 1}), GetParam());
  const auto want = AllLogits(remote.runner.get());
  bool fails = true;
  remote.transport.AddWorker(
      WorkerId{1}, "w1", [&](std::span<const std::byte> frame) {
        if (!fails) return remote.cluster.handler(1)(frame);
        const auto request = transport::DecodeRequest(frame);
        EXPECT_TRUE(request.ok()) << request.status();
        return transport::EncodeError({.tag = request->tag,
                                       .code = absl::StatusCode::kUnavailable,
                                       .message = "worker w1: unplugged"});
      });
  auto sequence = remote.runner->Open(0);
  const auto failed = remote.runner->Step({{.sequence = &sequence,
                                            .tokens = FindGolden("story").ids,
                                            .prefill = true}});
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(failed.status().message().find("w1"), std::string::npos)
      << failed.status();
  EXPECT_TRUE(remote.runner->decoder().Health().ok());
  fails = false;
  EXPECT_EQ(AllLogits(remote.runner.get()), want);
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         TwoWorkers,
                         ::testing::Values(testing::kFastForm,
                                           testing::kGpuForm,
                                           testing::kTwinForm),
                         [](const auto& info) { return info.param.Name(); });

TEST(NarrowRows, Bf16OnTheWireIsCloseButNotEqual) {
  const v1::ClusterConfig config = Workers({1, 1});
  Remote narrow(config, testing::kFastForm, DType::kBF16);
  Remote wide(config, testing::kFastForm);
  const auto got = AllLogits(narrow.runner.get());
  const auto want = AllLogits(wide.runner.get());
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) {
    const double error =
        testing::RelativeError(got[i].data(), want[i].data(), got[i].size());
    EXPECT_GT(error, 0);
    EXPECT_LT(error, kBf16RowsLogits);
  }
}

}  // namespace
}  // namespace conclave::parity
