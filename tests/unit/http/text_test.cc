// SPDX-License-Identifier: Apache-2.0
#include <string>
#include <vector>

#include "coordinator/http/json_text.h"
#include "coordinator/http/sse.h"
#include "coordinator/http/status_map.h"
#include "coordinator/http/utf8.h"
#include "coordinator/http/wire_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::http {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string JsonError(std::string_view text) {
  return std::string(ParseJson(text, "body").status().message());
}

TEST(JsonTextTest, NamesThePlaceOfWhatIsWrong) {
  EXPECT_TRUE(ParseJson(R"({"a": [1, {"b": "\u00e9"}]})", "body").ok());
  EXPECT_THAT(JsonError("{\"a\": 1,}"), HasSubstr("body: byte 8: no JSON"));
  EXPECT_THAT(JsonError(""), HasSubstr("body: byte 0: no JSON"));
  EXPECT_THAT(JsonError("{} {}"), HasSubstr("body: byte 3:"));
  EXPECT_THAT(JsonError("{\"a\": \"\xff\"}"),
              HasSubstr("body: byte 7: not UTF-8"));
  EXPECT_THAT(JsonError("{\"a\": \"\xed\xa0\x80\"}"), HasSubstr("not UTF-8"));
  EXPECT_THAT(JsonError("{\"a\": NaN}"), HasSubstr("no JSON"));
}

TEST(JsonTextTest, RefusesAKeyThatStandsTwice) {
  EXPECT_THAT(JsonError(R"({"a": 1, "b": {"a": 2}, "a": 3})"),
              HasSubstr("\"a\" stands twice"));
  EXPECT_THAT(JsonError(R"([{"x": 1, "\u0078": 1}])"),
              HasSubstr("\"x\" stands twice"));
}

TEST(JsonTextTest, BoundsTheDepth) {
  EXPECT_TRUE(
      ParseJson(std::string(60, '[') + std::string(60, ']'), "body").ok());
  EXPECT_THAT(JsonError(std::string(100000, '[')),
              HasSubstr("nested deeper than 64"));
}

TEST(SseTest, ReadsEventsCutAnywhere) {
  const std::string stream =
      SseData("{\"a\":1}") + ": comment\r\n\r\ndata:x\ndata:y\n\n" + SseDone();
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    SseReader reader;
    std::vector<std::string> events;
    for (size_t i = 0; i < stream.size(); i += piece) {
      for (std::string& event : reader.Push(stream.substr(i, piece))) {
        events.push_back(event);
      }
    }
    EXPECT_THAT(events, ElementsAre("{\"a\":1}", "x\ny", "[DONE]")) << piece;
    EXPECT_EQ(reader.held_bytes(), 0u);
  }
}

TEST(StatusMapTest, MapsBothWays) {
  EXPECT_EQ(HttpStatusOf(absl::StatusCode::kInvalidArgument), 400);
  EXPECT_EQ(HttpStatusOf(absl::StatusCode::kResourceExhausted), 429);
  EXPECT_EQ(HttpStatusOf(absl::StatusCode::kDeadlineExceeded), 503);
  EXPECT_EQ(HttpStatusOf(absl::StatusCode::kUnavailable), 503);
  EXPECT_EQ(HttpStatusOf(absl::StatusCode::kInternal), 500);
  for (const int status : {200, 400, 401, 404, 429, 500, 503}) {
    EXPECT_EQ(HttpStatusOf(CodeOfHttpStatus(status)), status);
    EXPECT_NE(ReasonOf(status), "Unknown");
  }
}

TEST(StatusMapTest, FindsTheFieldOfAMessage) {
  EXPECT_EQ(FieldOf("max_tokens: too many"), "max_tokens");
  EXPECT_EQ(FieldOf("messages[1].content[0]: no"), "messages[1].content[0]");
  EXPECT_EQ(FieldOf("no colon here"), "");
  EXPECT_EQ(FieldOf("worker w1 (127.0.0.1:7001): gone"), "");
  EXPECT_EQ(FieldOf(""), "");
}

TEST(Utf8Test, ReplacesWhatIsNone) {
  EXPECT_EQ(ToUtf8Lossy("a\xc3\xa9z"), "a\xc3\xa9z");
  EXPECT_EQ(ToUtf8Lossy("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80");
  EXPECT_EQ(ToUtf8Lossy("\xf0\x9f"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(FirstInvalidUtf8("ab\xc0\x80"), 2u);
  EXPECT_EQ(FirstInvalidUtf8("\xf4\x90\x80\x80"), 0u);
  EXPECT_EQ(FirstInvalidUtf8("\xe0\x9f\xbf"), 0u);
}

TEST(WireTextTest, WritesLengthsAndChunks) {
  Response response;
  response.status = 429;
  response.headers.emplace_back("Retry-After", "1");
  response.body = "{}";
  const std::string bytes = ResponseBytes(response, true);
  EXPECT_THAT(bytes, HasSubstr("HTTP/1.1 429 Too Many Requests\r\n"));
  EXPECT_THAT(bytes, HasSubstr("Retry-After: 1\r\n"));
  EXPECT_THAT(bytes, HasSubstr("Content-Length: 2\r\n\r\n{}"));
  EXPECT_EQ(ChunkBytes("0123456789abcdef"), "10\r\n0123456789abcdef\r\n");
  EXPECT_THAT(StreamHead("x/y", true, true), HasSubstr("chunked"));
  EXPECT_THAT(StreamHead("x/y", false, false), HasSubstr("close"));
}

}  // namespace
}  // namespace conclave::http
