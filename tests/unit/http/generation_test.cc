// SPDX-License-Identifier: Apache-2.0
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/http/fake_server.h"

namespace conclave::http {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST_F(ServerTest, AnswersWhole) {
  Start();
  auto client = Connect();
  client->Post("/v1/chat/completions", kChat);
  const TokenSink sink = engine_.Sink(0);
  sink(Text("Hello"));
  sink(Text(" there"));
  sink(End());
  const std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("\"content\":\"Hello there\""));
  EXPECT_THAT(reply, HasSubstr("\"total_tokens\":5"));
  EXPECT_EQ(engine_.cancels(), 0u);
  // The connection stays.
  client->Get("/v1/models");
  EXPECT_THAT(client->ReadResponse(), HasSubstr("\"id\":\"tiny\""));
}

TEST_F(ServerTest, StreamsInOrder) {
  Start();
  auto client = Connect();
  client->Post("/v1/chat/completions", kChatStream);
  const TokenSink sink = engine_.Sink(0);
  sink(Text("A"));
  const std::string first = client->ReadUntil("\"content\":\"A\"");
  EXPECT_THAT(first, HasSubstr("text/event-stream"));
  EXPECT_THAT(first, HasSubstr("\"role\":\"assistant\""));
  sink(Text("B"));
  sink(End(FinishReason::kLength));
  const std::string rest = client->ReadUntil("0\r\n\r\n");
  EXPECT_THAT(rest, HasSubstr("\"content\":\"B\""));
  EXPECT_THAT(rest, HasSubstr("\"finish_reason\":\"length\""));
  EXPECT_THAT(rest, HasSubstr("\"choices\":[],\"usage\":{\"prompt_tokens\":3"));
  EXPECT_THAT(rest, HasSubstr("data: [DONE]\n\n"));
  EXPECT_EQ(engine_.cancels(), 0u);
}

TEST_F(ServerTest, AStreamThatNeverBeganIsAnErrorOfItsOwn) {
  Start();
  auto client = Connect();
  client->Post("/v1/chat/completions", kChatStream);
  engine_.Sink(0)(Broken());
  const std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(reply, HasSubstr("worker w1 is gone"));
}

TEST_F(ServerTest, ABegunStreamEndsInAnErrorEvent) {
  Start();
  auto client = Connect();
  client->Post("/v1/chat/completions", kChatStream);
  const TokenSink sink = engine_.Sink(0);
  sink(Text("A"));
  sink(Broken());
  const std::string reply = client->ReadUntil("0\r\n\r\n");
  EXPECT_THAT(reply, HasSubstr("data: {\"error\":{"));
  EXPECT_THAT(reply, HasSubstr("\"code\":503"));
  EXPECT_THAT(reply, HasSubstr("worker w1 is gone"));
  EXPECT_THAT(reply, Not(HasSubstr("[DONE]")));
}

TEST_F(ServerTest, RefusalsOfTheEngineGetTheirStatus) {
  Start();
  auto client = Connect();
  engine_.Refuse(absl::ResourceExhaustedError("the queue is full"));
  client->Post("/v1/chat/completions", kChatStream);
  std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 429 "));
  EXPECT_THAT(reply, HasSubstr("Retry-After: 1\r\n"));
  engine_.Refuse(absl::InvalidArgumentError("max_tokens: too long"));
  client->Post("/v1/completions", "{\"prompt\": \"x\"}");
  reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(reply, HasSubstr("\"param\":\"max_tokens\""));
}

TEST_F(ServerTest, EachPromptIsAChoice) {
  Start();
  auto client = Connect();
  client->Post("/v1/completions", "{\"prompt\": [\"x\", \"y\"]}");
  const TokenSink first = engine_.Sink(0), second = engine_.Sink(1);
  second(Text("two"));
  second(End());
  first(Text("one"));
  first(End());
  const std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, HasSubstr("{\"index\":0,\"text\":\"one\""));
  EXPECT_THAT(reply, HasSubstr("{\"index\":1,\"text\":\"two\""));
  EXPECT_THAT(reply, HasSubstr("\"prompt_tokens\":6"));
}

TEST_F(ServerTest, CancelsWhenTheClientGoes) {
  Start();
  for (const char* body : {kChat, kChatStream}) {
    const size_t before = engine_.cancels();
    auto client = Connect();
    client->Post("/v1/chat/completions", body);
    engine_.Sink(before)(Text("A"));
    client->Close();
    EXPECT_TRUE(engine_.WaitForCancels(before + 1));
  }
  EXPECT_TRUE(
      MetricsShow("conclave_http_requests_total{path=\"/v1/chat/completions\","
                  "status=\"499\"} 2"));
}

TEST_F(ServerTest, CancelsWhenTheClientReadsTooSlowly) {
  ServerOptions options;
  options.output_bytes_max = 1 << 20;
  Start(options);
  auto client = Connect();
  client->Post("/v1/chat/completions", kChatStream);
  const TokenSink sink = engine_.Sink(0);
  for (int i = 0; i < 400; ++i) sink(Text(std::string(100000, 'x')));
  EXPECT_TRUE(engine_.WaitForCancels(1));
}

}  // namespace
}  // namespace conclave::http
