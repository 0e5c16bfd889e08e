// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

#include "coordinator/text/chat_template.h"

namespace conclave::text {
namespace {

Message Of(const std::string& role, const std::string& content) {
  return {.role = role,
          .content = content,
          .reasoning_content = {},
          .tool_calls = {}};
}

struct Outcome {
  std::optional<bool> think;
  std::string content;
  bool operator==(const Outcome&) const = default;
};

Outcome Apply(const std::string& content) {
  std::vector<Message> messages = {Of("user", content)};
  const auto think = ApplySoftSwitches(messages);
  return {think, messages[0].content};
}

TEST(SoftSwitch, TheLeadingWordIsTakenAway) {
  EXPECT_EQ(Apply("/think Why?"), (Outcome{true, "Why?"}));
  EXPECT_EQ(Apply("/nothink Why?"), (Outcome{false, "Why?"}));
  EXPECT_EQ(Apply("/no_think\nWhy?"), (Outcome{false, "Why?"}));
  EXPECT_EQ(Apply("  /think\tWhy?"), (Outcome{true, "Why?"}));
  EXPECT_EQ(Apply("/no_think"), (Outcome{false, ""}));
}

TEST(SoftSwitch, OtherTextStays) {
  for (const std::string text : {"/thinking of you",
                                 "/think.",
                                 "/no_thinking",
                                 "/no_",
                                 "Please /think",
                                 "think",
                                 " Why? ",
                                 "/Think a",
                                 ""}) {
    EXPECT_EQ(Apply(text), (Outcome{std::nullopt, text}));
  }
}

TEST(SoftSwitch, TheLastUserMessageDecides) {
  std::vector<Message> messages = {Of("user", "/think a"),
                                   Of("assistant", "b"),
                                   Of("user", "/no_think c"),
                                   Of("assistant", "/think d"),
                                   Of("tool", "/think e")};
  EXPECT_EQ(ApplySoftSwitches(messages), false);
  EXPECT_EQ(messages[0].content, "a");
  EXPECT_EQ(messages[2].content, "c");
  EXPECT_EQ(messages[3].content, "/think d");
  EXPECT_EQ(messages[4].content, "/think e");
}

TEST(SoftSwitch, AnEarlierSwitchDoesNotLast) {
  std::vector<Message> messages = {Of("user", "/no_think a"), Of("user", "b")};
  EXPECT_EQ(ApplySoftSwitches(messages), std::nullopt);
  EXPECT_EQ(messages[0].content, "a");
}

}  // namespace
}  // namespace conclave::text
