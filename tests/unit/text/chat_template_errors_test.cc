// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

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

Message Calling(const std::string& arguments) {
  Message message = Of("assistant", "");
  message.tool_calls = {{.id = "", .name = "now", .arguments_json = "{}"},
                        {.id = "", .name = "f", .arguments_json = arguments}};
  return message;
}

// The error's message; "" if it renders, or if the code is another.
std::string Error(const std::vector<Message>& messages,
                  const std::vector<Tool>& tools = {}) {
  const auto text = RenderChat(messages, tools, {});
  return absl::IsInvalidArgument(text.status())
             ? std::string(text.status().message())
             : "";
}

TEST(ChatTemplateErrors, NoMessages) {
  EXPECT_TRUE(Error({}).starts_with("messages: "));
}

TEST(ChatTemplateErrors, RolesAreNamedByTheirPlace) {
  EXPECT_TRUE(Error({Of("user", "a"), Of("robot", "b")})
                  .starts_with("messages[1].role: \"robot\""));
  EXPECT_TRUE(Error({Of("", "a")}).starts_with("messages[0].role: "));
  EXPECT_TRUE(Error({Of("system", "s"), Of("user", "a"), Of("system", "b")})
                  .starts_with("messages[2].role: "));
}

TEST(ChatTemplateErrors, SomebodyMustAsk) {
  EXPECT_TRUE(Error({Of("system", "s")}).starts_with("messages: no user"));
  EXPECT_TRUE(Error({Of("user", "<tool_response>x</tool_response>")})
                  .starts_with("messages: no user"));
}

TEST(ChatTemplateErrors, ArgumentsMustBeAnObject) {
  for (const std::string bad : {"[1]", "7", "{\"a\":", "{} {}", "text"}) {
    EXPECT_TRUE(
        Error({Of("user", "a"), Calling(bad)})
            .starts_with("messages[1].tool_calls[1].function.arguments: "))
        << bad;
  }
  EXPECT_EQ(Error({Of("user", "a"), Calling("")}), "");
  EXPECT_EQ(Error({Of("user", "a"), Calling("{\"a\": 1}")}), "");
}

TEST(ChatTemplateErrors, DepthIsBounded) {
  const std::string deep =
      "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_TRUE(Error({Of("user", "a"), Calling(deep)})
                  .starts_with("messages[1].tool_calls[1]"));
}

TEST(ChatTemplateErrors, ToolsAreNamedByTheirPlace) {
  const Tool good = {.name = "a", .json = "{}", .parameters_json = "{}"};
  const Tool bad = {.name = "b", .json = "{", .parameters_json = "{}"};
  EXPECT_TRUE(Error({Of("user", "a")}, {good, bad}).starts_with("tools[1]: "));
}

}  // namespace
}  // namespace conclave::text
