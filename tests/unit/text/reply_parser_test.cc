// SPDX-License-Identifier: Apache-2.0
#include "coordinator/text/reply_parser.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <string>
#include <vector>

#include "tests/unit/text/reply_strings.h"

namespace conclave::text {
namespace {

std::vector<Tool> Tools() {
  return {{.name = "get_weather",
           .json = "{}",
           .parameters_json = R"({"type": "object", "properties": {
               "city": {"type": "string"}, "days": {"type": "integer"},
               "exact": {"type": "boolean"}, "scale": {"type": "number"},
               "places": {"type": "array"}, "where": {"type": "object"},
               "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
               "unit": {"enum": ["1", "2"]}}})"},
          {.name = "now", .json = "{}", .parameters_json = "{}"}};
}

Reply Parse(const std::string& text, bool thinking = false) {
  return ParseReply({text}, thinking, Tools());
}

std::string Value(const std::string& key, const std::string& raw) {
  const Reply reply =
      Parse("<tool_call>\n<function=get_weather>\n<parameter=" + key + ">\n" +
            raw + "\n</parameter>\n</function>\n</tool_call>");
  if (reply.calls.size() != 1) return "no call";
  const auto arguments = boost::json::parse(reply.calls[0].arguments);
  return boost::json::serialize(arguments.at(key));
}

constexpr const char* kOslo =
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n"
    "</parameter>\n</function>\n</tool_call>";

TEST(ReplyParser, ReasoningEndsAtItsTag) {
  const Reply reply = Parse("I think.\n</think>\n\nHello.", true);
  EXPECT_EQ(reply.reasoning, "I think.");
  EXPECT_EQ(reply.content, "Hello.");
}

TEST(ReplyParser, ALiteralOpeningTagIsDropped) {
  const Reply reply = Parse("<think>\nwhy\n</think>\n\nso", true);
  EXPECT_EQ(reply.reasoning, "why");
  EXPECT_EQ(reply.content, "so");
}

TEST(ReplyParser, WithoutThinkingABlockAtTheStartIsStillReasoning) {
  const Reply reply = Parse("<think>\nwhy\n</think>\n\nso", false);
  EXPECT_EQ(reply.reasoning, "why");
  EXPECT_EQ(reply.content, "so");
  EXPECT_EQ(Parse("a <think>b</think>").content, "a <think>b</think>");
}

TEST(ReplyParser, WithoutToolsMarkupIsContent) {
  const std::string text = std::string("\n x \n") + kOslo + "\n\n";
  const Reply reply = ParseReply({text}, false, {});
  EXPECT_EQ(reply.content, text);
  EXPECT_TRUE(reply.calls.empty());
}

TEST(ReplyParser, ACallAfterContent) {
  const Reply reply = Parse(std::string("Let me look.\n\n") + kOslo + "\n");
  EXPECT_EQ(reply.content, "Let me look.");
  ASSERT_EQ(reply.calls.size(), 1u);
  EXPECT_EQ(reply.calls[0].id, "call_0");
  EXPECT_EQ(reply.calls[0].name, "get_weather");
  EXPECT_EQ(boost::json::parse(reply.calls[0].arguments),
            boost::json::parse(R"({"city": "Oslo"})"));
}

TEST(ReplyParser, SeveralCallsAndNothingBetween) {
  const Reply reply =
      Parse(std::string("r\n</think>\n\n") + kOslo + "\n \n" + kOslo + "\n" +
                "<tool_call>\n<function=now>\n</function>\n</tool_call>\n",
            true);
  EXPECT_EQ(reply.reasoning, "r");
  EXPECT_EQ(reply.content, "");
  ASSERT_EQ(reply.calls.size(), 3u);
  EXPECT_EQ(reply.calls[2].id, "call_2");
  EXPECT_EQ(reply.calls[2].arguments, "{}");
}

TEST(ReplyParser, ACallInsideThinking) {
  const Reply reply =
      Parse(std::string("hm\n") + kOslo + "\n</think>\n\nDone.", true);
  EXPECT_EQ(reply.reasoning, "hm");
  EXPECT_EQ(reply.content, "Done.");
  ASSERT_EQ(reply.calls.size(), 1u);
  const Reply more = Parse(std::string("hm\n") + kOslo + "so\n</think>", true);
  EXPECT_EQ(more.reasoning, "hmso");
}

TEST(ReplyParser, MissingTagsAreTolerated) {
  const std::string head = "<function=get_weather>\n";
  const std::string city = "<parameter=city>\nOslo\n";
  for (const std::string& text : {
           head + city + "</parameter>\n</function>\n</tool_call>",
           head + city + "</parameter>\n</function>",
           "<tool_call>\n" + head + city + "</function>\n</tool_call>",
           "<tool_call>\n" + head + city + "</parameter>\n</tool_call>",
           "<tool_call>\n" + head + city + "</parameter>\n</function>",
           "<tool_call>\n" + head + city + "</parameter>",
           "<tool_call>\n" + head + city + "</tool_call>",
           "<tool_call>\n" + head + city + "</param",
           "<tool_call>\n" + head + city + "</parameter>\n</func",
           "<tool_call>\n" + head + city,
       }) {
    const Reply reply = Parse(text);
    ASSERT_EQ(reply.calls.size(), 1u) << text;
    EXPECT_EQ(boost::json::parse(reply.calls[0].arguments),
              boost::json::parse(R"({"city": "Oslo"})"))
        << text;
    EXPECT_EQ(reply.content, "") << text;
  }
}

TEST(ReplyParser, OnlyNewlinesOfTheFormatAreLost) {
  const Reply reply = Parse("\n  a\n\n b \n</think>\n\n  c\n\n", true);
  EXPECT_EQ(reply.reasoning, "  a\n\n b ");
  EXPECT_EQ(reply.content, "  c\n\n");
}

TEST(ReplyParser, ReasoningThatDoesNotEndKeepsItsNewlines) {
  EXPECT_EQ(Parse("why\n\n", true).reasoning, "why\n\n");
  EXPECT_EQ(Parse("why\n</thi", true).reasoning, "why\n</thi");
  EXPECT_EQ(Parse("why\n\n", true).content, "");
}

// The text may end anywhere in a call, and may be cut there.
TEST(ReplyParser, EveryBeginningOfACall) {
  const std::string text = std::string("So:\n\n") + kOslo;
  const size_t head = text.find("get_weather>") + 12;
  for (size_t size = 0; size <= text.size(); ++size) {
    const std::string part = text.substr(0, size);
    const Reply whole = Parse(part);
    ReplyParser parser(false, Tools(), "call_");
    Reply streamed;
    for (const char c : part) {
      Add(parser.Push(std::string_view(&c, 1)), streamed);
    }
    Add(parser.Finish(), streamed);
    ASSERT_EQ(streamed, whole) << part;
    if (size < head) {
      EXPECT_EQ(whole.content, part);
      EXPECT_TRUE(whole.calls.empty()) << part;
      continue;
    }
    EXPECT_EQ(whole.content, "So:") << part;
    ASSERT_EQ(whole.calls.size(), 1u) << part;
    EXPECT_TRUE(boost::json::parse(whole.calls[0].arguments).is_object());
  }
}

TEST(ReplyParser, TextThatIsNoCallHidesNoLaterCall) {
  for (const std::string prose :
       {"Write <tool_call> first.",
        "<tool_call>\n<function=nothing>\n</function>\n</tool_call>",
        "a < b, <tool_call",
        "<tool_call><tool_call>!"}) {
    const Reply reply = Parse(prose + "\n" + kOslo);
    EXPECT_EQ(reply.content, prose);
    ASSERT_EQ(reply.calls.size(), 1u) << prose;
    EXPECT_EQ(reply.calls[0].arguments, R"({"city":"Oslo"})");
  }
}

TEST(ReplyParser, ACallThatLacksAllClosersEndsAtTheNext) {
  const Reply reply = Parse(
      "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n"
      "<parameter=days>\n3\n<tool_call>\n<function=now>\n</function>\n"
      "</tool_call>");
  ASSERT_EQ(reply.calls.size(), 2u);
  EXPECT_EQ(boost::json::parse(reply.calls[0].arguments),
            boost::json::parse(R"({"city": "Oslo", "days": 3})"));
  EXPECT_EQ(reply.calls[1].name, "now");
}

TEST(ReplyParser, MarkupInsideALineOfAValueIsTheValues) {
  EXPECT_EQ(Value("city", "a </function> <parameter=x> <function=now> b"),
            "\"a </function> <parameter=x> <function=now> b\"");
}

TEST(ReplyParser, WhatFollowsACallWithoutClosersIsText) {
  const Reply reply = Parse(
      "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n"
      "</parameter>\nSo.\n</function>\n</tool_call>");
  EXPECT_EQ(reply.content, "So.");
  ASSERT_EQ(reply.calls.size(), 1u);
}

TEST(ReplyParser, ProseAboutMarkupIsText) {
  for (const std::string& text : {
           std::string("Use <tool_call> to call."),
           std::string("<tool_call>\n<function=unknown>\n</function>"),
           std::string("A call begins with <function=now> and so on."),
           std::string("Say `<tool_call>\n<function=now>` then go."),
           std::string("a < b <function= c"),
           std::string("ends in <tool_call>"),
           std::string("ends in <function=now>"),
           std::string("ends in <tool_call>\n<function=no"),
       }) {
    const Reply reply = Parse(text);
    EXPECT_EQ(reply.content, text);
    EXPECT_TRUE(reply.calls.empty()) << text;
  }
}

TEST(ReplyParser, TheStreamNeverGoesSilent) {
  for (const std::string start : {"<tool_call>",
                                  "<tool_call>\n<function=",
                                  "<function=now",
                                  "<function=",
                                  "<think",
                                  "<"}) {
    ReplyParser parser(false, Tools(), "call_");
    std::string content = parser.Push("x" + start).content;
    size_t pushed = start.size() + 1;
    for (int i = 0; i < 1000; ++i) {
      ++pushed;
      content += parser.Push(i % 7 == 0 ? " " : "y").content;
      EXPECT_LE(pushed - content.size(), 600u) << start;
    }
    EXPECT_EQ(content.size(), pushed) << start;
  }
}

TEST(ReplyParser, TextIsHeldBackOnlyAsLongAsNeeded) {
  ReplyParser parser(true, Tools(), "call_");
  EXPECT_EQ(parser.Push("abc").reasoning, "abc");
  EXPECT_EQ(parser.Push(" <x").reasoning, " <x");
  EXPECT_TRUE(parser.in_reasoning());
  EXPECT_EQ(parser.Push("\n</thi").reasoning, "");
  EXPECT_EQ(parser.Push("s>").reasoning, "\n</this>");
  parser.Push("</think>\n\n");
  EXPECT_FALSE(parser.in_reasoning());
  EXPECT_EQ(parser.Push("yes").content, "yes");
}

TEST(ReplyParser, ValuesFollowTheSchema) {
  EXPECT_EQ(Value("city", "42"), "\"42\"");
  EXPECT_EQ(Value("city", "True"), "\"True\"");
  EXPECT_EQ(Value("city", " a\n\n"), "\" a\\n\\n\"");
  EXPECT_EQ(Value("days", "3"), "3");
  EXPECT_EQ(Value("days", "soon"), "\"soon\"");
  EXPECT_EQ(Value("days", "None"), "null");
  EXPECT_EQ(Value("exact", "True"), "true");
  EXPECT_EQ(Value("exact", "false"), "false");
  EXPECT_EQ(Value("places", "[\"a\", 1]"), "[\"a\",1]");
  EXPECT_EQ(Value("places", "[True, \"True\", None]"), "[true,\"True\",null]");
  EXPECT_EQ(Value("where", "{\"k\": {\"q\": 1}}"), "{\"k\":{\"q\":1}}");
  EXPECT_EQ(Value("where", "{\"k\": "), "\"{\\\"k\\\": \"");
  EXPECT_EQ(Value("other", "7"), "7");
  EXPECT_EQ(Value("other", "seven"), "\"seven\"");
  // Optional strings as pydantic writes them, and enums without a type.
  EXPECT_EQ(Value("note", "42"), "\"42\"");
  EXPECT_EQ(Value("note", "null"), "null");
  EXPECT_EQ(Value("unit", "1"), "\"1\"");
}

TEST(ReplyParser, NumbersKeepTheirDigits) {
  const Reply reply = Parse(
      "<tool_call>\n<function=get_weather>\n<parameter=scale>\n0.30\n"
      "</parameter>\n<parameter=days>\n123456789012345678901234567890\n"
      "</parameter>\n</function>\n</tool_call>");
  ASSERT_EQ(reply.calls.size(), 1u);
  EXPECT_NE(reply.calls[0].arguments.find("0.30"), std::string::npos);
  EXPECT_NE(reply.calls[0].arguments.find("123456789012345678901234567890"),
            std::string::npos)
      << reply.calls[0].arguments;
}

TEST(ReplyParser, LongValuesInSmallPiecesAreLinear) {
  // Quadratic work on 2 MB in pieces of 4 bytes would take minutes.
  ReplyParser parser(false, Tools(), "call_");
  parser.Push("<tool_call>\n<function=get_weather>\n<parameter=city>\n");
  for (int i = 0; i < 500'000; ++i) parser.Push("a<b\n");
  parser.Push("</parameter>\n</function>\n</tool_call>");
  const ReplyPiece last = parser.Finish();
  EXPECT_EQ(parser.tool_call_count(), 1);
}

// Any cutting of any reply gives what the whole gives.
TEST(ReplyParser, StreamedEqualsAtOnce) {
  testing::Seeded random(7);
  int calls = 0;
  for (int i = 0; i < 600; ++i) {
    const std::string text = RandomReply(random);
    const bool thinking = random.Int(2) == 1;
    const auto tools = random.Int(5) == 0 ? std::vector<Tool>() : Tools();
    const Reply whole = ParseReply({text}, thinking, tools);
    calls += static_cast<int>(whole.calls.size());
    for (int cut = 0; cut < 4; ++cut) {
      const Reply streamed =
          ParseReply(Cut(text, random, 1 + 8 * cut), thinking, tools);
      ASSERT_EQ(streamed, whole) << i << ": " << text;
    }
    for (const Call& call : whole.calls) {
      boost::json::error_code error;
      EXPECT_TRUE(boost::json::parse(call.arguments, error).is_object())
          << call.arguments;
    }
  }
  EXPECT_GT(calls, 100);
}

}  // namespace
}  // namespace conclave::text
