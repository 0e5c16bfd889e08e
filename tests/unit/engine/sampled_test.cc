// SPDX-License-Identifier: Apache-2.0

// Steps whose tokens the decoder chooses, and devices that are lost.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/engine/engine_fixture.h"
#include "tests/unit/engine/kinds_of_sampling.h"
#include "tests/unit/engine/scripted_decoder.h"

namespace conclave {
namespace {

using testing::EngineHouse;
using testing::FindGolden;
using testing::Greedy;
using testing::ReplyPtr;
using testing::Script;
using testing::ScriptedDecoder;

EngineHouse::Wrap Around(Script* script) {
  return [script](std::unique_ptr<model::Decoder> real) {
    return std::make_unique<ScriptedDecoder>(std::move(real), script);
  };
}

v1::Limits Sequences(int32_t count) {
  v1::Limits limits;
  limits.set_max_sequences(count);
  limits.set_kv_tokens(8192);
  return limits;
}

GenerateRequest Endless(int32_t tokens = 1500) {
  GenerateRequest request = Greedy(FindGolden("len2").ids, tokens);
  request.ignore_eos = true;
  return request;
}

TEST(SampledSteps, GiveTheTokensThatTheHostGives) {
  EngineHouse host(Sequences(8));
  Script script;
  EngineHouse house(Sequences(8), nullptr, nullptr, Around(&script));
  std::vector<std::string> alone;
  for (GenerateRequest& r : testing::KindsOfSampling()) {
    alone.push_back(host.Run(std::move(r))->content);
  }
  std::vector<ReplyPtr> replies;
  for (GenerateRequest& r : testing::KindsOfSampling()) {
    // Some come while others decode: tokens are chosen by turns.
    if (replies.size() % 3 == 1) replies.back()->WaitForEvents(4);
    replies.push_back(house.Submit(std::move(r)));
  }
  for (size_t i = 0; i < replies.size(); ++i) {
    replies[i]->Wait();
    EXPECT_TRUE(replies[i]->last.error.ok()) << replies[i]->last.error;
    EXPECT_EQ(replies[i]->content, alone[i]) << i;
  }
  EXPECT_GT(script.sampled, 24);
  // Two requests with a penalty, told once each time others had prefilled.
  EXPECT_GE(script.counts, 2);
  EXPECT_LT(script.counts, script.sampled);
}

TEST(SampledSteps, OnlyWhereNobodyReadsLogits) {
  Script script;
  EngineHouse house(Sequences(4), nullptr, nullptr, Around(&script));
  GenerateRequest logprobs = Endless(8), bias = Endless(8), echo = Endless(8);
  logprobs.logprobs = true;
  bias.sampling.logit_bias = {{3, 5.f}};
  echo.echo = true;
  for (const GenerateRequest& r : {logprobs, bias, echo}) {
    house.Run(r);
    EXPECT_EQ(script.sampled, 0);
  }
  EXPECT_EQ(house.Run(logprobs)->logprobs.size(), 8u);
  house.Run(Endless(8));
  EXPECT_EQ(script.sampled, 7);  // the first comes with the prompt
  EXPECT_EQ(script.counts, 0);
}

TEST(SampledSteps, WhatIsNoNumberEndsItsOwnSequence) {
  Script script;
  EngineHouse house(Sequences(2), nullptr, nullptr, Around(&script));
  const ReplyPtr first = house.Submit(Endless());
  first->WaitForEvents(2);
  const ReplyPtr second = house.Submit(Endless(600));
  second->WaitForEvents(3);
  script.nan = true;
  first->Wait();
  script.nan = false;
  EXPECT_EQ(first->last.error.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(first->last.error.message()),
              ::testing::StartsWith("logits: not finite in the step from "
                                    "position "));
  // The other one was the first of a step after that, or went on.
  second->Wait();
  house.Run(Endless(4));
}

TEST(SampledSteps, ResidentBytesAreTheDecoders) {
  Script script;
  EngineHouse house(Sequences(4), nullptr, nullptr, Around(&script));
  EXPECT_EQ(house.Metric("conclave_resident_bytes{part=\"kv\"}"), 8192 / 64);
  EXPECT_EQ(house.Metric("conclave_resident_bytes{part=\"state\"}"), 8);
  EXPECT_EQ(house.Metric("conclave_resident_bytes{part=\"experts\"}"), 7);
}

TEST(DeviceFault, EndsTheStepsRequestsAndServesAgain) {
  Script script;
  EngineHouse house(Sequences(4), nullptr, nullptr, Around(&script));
  const ReplyPtr a = house.Submit(Endless());
  const ReplyPtr b = house.Submit(Endless());
  a->WaitForEvents(2);
  b->WaitForEvents(2);
  const absl::Status fault =
      absl::UnavailableError("GPU 0 (X): CUDA: out of memory");
  script.Fail(fault, absl::OkStatus());
  for (const ReplyPtr& reply : {a, b}) {
    reply->Wait();
    EXPECT_EQ(reply->last.error, fault);
  }
  script.Fail(absl::OkStatus(), absl::OkStatus());
  EXPECT_TRUE(house.engine->Health().ok());
  EXPECT_TRUE(house.engine->Lost().ok());
  house.Run(Endless(8));
}

TEST(DeviceFault, ALostDeviceEndsEverybodyAndRefuses) {
  Script script;
  EngineHouse house(Sequences(2), nullptr, nullptr, Around(&script));
  const ReplyPtr a = house.Submit(Endless());
  const ReplyPtr b = house.Submit(Endless());
  a->WaitForEvents(2);
  b->WaitForEvents(2);
  const ReplyPtr waiting = house.Submit(Endless());
  const absl::Status fault =
      absl::InternalError("GPU 0 (X): CUDA: waiting for the device: gone");
  const absl::Status lost = absl::UnavailableError(fault.message());
  script.Fail(fault, lost);
  a->Wait();
  b->Wait();
  waiting->Wait();
  EXPECT_EQ(a->last.error, fault);
  EXPECT_EQ(b->last.error, fault);
  EXPECT_EQ(waiting->last.error, lost);
  EXPECT_EQ(house.TrySubmit(Endless()).status(), lost);
  EXPECT_EQ(house.engine->Health(), lost);
  EXPECT_EQ(house.engine->Lost(), lost);
}

}  // namespace
}  // namespace conclave
