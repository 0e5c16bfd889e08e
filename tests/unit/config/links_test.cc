// SPDX-License-Identifier: Apache-2.0
#include "common/config/links.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <string>

namespace conclave::config {
namespace {

using ::testing::HasSubstr;

std::string WhyNot(const std::string& yaml) {
  const auto links = ParseLinks(yaml, "links.yaml");
  return links.ok() ? "" : std::string(links.status().message());
}

TEST(Links, WhatIsWrittenIsRead) {
  v1::Links links;
  links.set_measured_by("conclave 1.2.3");
  links.set_model_sha256("1234");
  auto* coordinator = links.mutable_coordinator();
  coordinator->set_memory_gb_per_s(12.5);
  for (const int32_t sequences : {1, 8}) {
    auto* step = coordinator->add_steps();
    step->set_sequences(sequences);
    step->set_step_us(1000 * sequences);
    step->set_overlap_us(125);
    step->set_fan_out_us(3.25);
  }
  for (const char* name : {"w0", "no: \"yaml\" # here"}) {
    auto* worker = links.add_workers();
    worker->set_name(name);
    worker->set_address("127.0.0.1:7101");
    worker->set_round_trip_us(150.5);
    worker->set_out_gb_per_s(0.125);
    worker->set_memory_free_gb(64);
  }
  const std::string yaml = LinksToYaml(links);
  const auto again = ParseLinks(yaml, "links.yaml");
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << yaml;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(links, *again))
      << yaml;
  EXPECT_THAT(yaml, Not(HasSubstr("expert_call_us")));
  ASSERT_NE(FindMeasured(*again, "w0"), nullptr);
  EXPECT_EQ(FindMeasured(*again, "w0")->round_trip_us(), 150.5);
  EXPECT_EQ(FindMeasured(*again, "w1"), nullptr);
}

TEST(Links, ErrorsNameFileAndField) {
  EXPECT_EQ(WhyNot(""), "");
  EXPECT_THAT(WhyNot("workers:\n  - name: w0\n    round_trip: 3\n"),
              AllOf(HasSubstr("links.yaml:3"), HasSubstr("round_trip_us")));
  EXPECT_THAT(WhyNot("workers:\n  - name: w0\n    out_gb_per_s: fast\n"),
              AllOf(HasSubstr("links.yaml:3"),
                    HasSubstr("workers[0].out_gb_per_s must be a number")));
  EXPECT_THAT(WhyNot("workers: [{name: w0, back_gb_per_s: -1}]"),
              AllOf(HasSubstr("links.yaml"),
                    HasSubstr("workers[0].back_gb_per_s is -1")));
  EXPECT_THAT(WhyNot("workers: [{address: \"h:1\"}]"),
              HasSubstr("workers[0].name is missing"));
  EXPECT_THAT(WhyNot("workers: [{name: w0}, {name: w0}]"),
              HasSubstr("workers[1].name 'w0' stands there twice"));
  EXPECT_THAT(WhyNot("coordinator: {memory_gb_per_s: -2}"),
              HasSubstr("coordinator.memory_gb_per_s"));
  EXPECT_THAT(WhyNot("coordinator: {steps: [{sequences: 8, step_us: 1},"
                     " {sequences: 1, step_us: 1}]}"),
              HasSubstr("coordinator.steps[1].sequences is 1 after 8"));
  EXPECT_THAT(WhyNot("coordinator: {steps: [{sequences: 1, overlap_us: 1}]}"),
              HasSubstr("coordinator.steps[0].step_us"));
  EXPECT_THAT(std::string(LoadLinks("no/such.yaml").status().message()),
              HasSubstr("no/such.yaml"));
}

}  // namespace
}  // namespace conclave::config
